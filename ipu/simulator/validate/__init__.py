"""Published measurements in, errors out; and the fit of the time model's constants to them."""
