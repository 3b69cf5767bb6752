"""The verdict and its forms: text, JSON, HTML, Chrome trace."""
