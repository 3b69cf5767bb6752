"""Rows of measurements for tests: configurations small enough to predict quickly, with step times made up."""

from __future__ import annotations

HEADER = (
    "id,target,framework,sdk,model,sequence_length,packed,mask_tokens,micro_batch_size,gradient_accumulation,"
    "replication_factor,layers_per_ipu,optimizer_state,replicated_tensor_sharding,matmul_proportion,"
    "embedding_serialization_factor,step_s,source"
)
ROWS = {
    "T1": "pod4,PopTorch,3.1,bert-mini,128,0,20,4,64,1,0 2 2,off_chip,0,0.2,1,0.5,none",
    "T2": "bow-pod16,PopART,3.1,groupbert-mini,64,1,12,4,32,2,1.5 2.5,on_chip,1,0.3 0.4,2,0.25,none",
}


def rows_file(folder, rows=None, header=HEADER, **changes):
    """A file of ROWS; `changes` of columns apply to the first row."""
    names = header.split(",")
    lines = [header]
    for number, (name, values) in enumerate((rows or ROWS).items()):
        cells = [name, *values.split(",")]
        if not number:
            cells = [changes.get(column, cell) for column, cell in zip(names, cells)]
        lines.append(",".join(cells))
    path = folder / "rows.csv"
    path.write_text("\n".join(lines) + "\n")
    return path
