// out[i, :] = table[ids[i] - shard_first_row, :] for the ids that are in this shard of rows. Other rows of out stay
// as they are.
// PENDING 0: the i-th id is ids[i]. PENDING 1: ids is the state, and the id is the pending token of the sequence that
// the state lists at row_seq_offset + i.
// An id outside the vocabulary gives a row of zeros, which the shard with shard_first_row = 0 writes.
// Constants: THREADS, DTYPE, PENDING.
@group(0) @binding(0) var<storage, read_write> table: array<u32>;    // [rows, row_words]
@group(0) @binding(1) var<storage, read_write> ids: array<u32>;      // [n], or the state
@group(0) @binding(2) var<storage, read_write> out: array<f32>;      // [n, cols]
struct Info {
    n: u32, cols: u32, row_words: u32, shard_first_row: u32,
    rows: u32, vocab: u32, row_seq_offset: u32, pad0: u32,
}
@group(0) @binding(3) var<uniform> info: Info;

const PER_WORD = select(select(select(2u, 1u, DTYPE == F32), 4u, DTYPE == Q8_0), 8u, DTYPE == Q4_0);

@compute @workgroup_size(THREADS)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let word = id.x;    // a word of values or quants; scales are not counted
    let i = id.y;
    if (word >= info.cols / PER_WORD || i >= info.n) { return; }
    var place = i;
    if (PENDING != 0u) { place = ids[info.row_seq_offset + i] * SEQ + SEQ_TOKEN; }
    let token = ids[place];
    let inside = token >= info.shard_first_row && token - info.shard_first_row < info.rows;
    let unknown = token >= info.vocab && info.shard_first_row == 0u;
    if (!inside && !unknown) { return; }
    let at = select(0u, (token - info.shard_first_row) * info.row_words + word, inside);
    let bits = select(0u, table[at], inside);
    if (DTYPE == F32) {
        out[i * info.cols + word] = bitcast<f32>(bits);
    } else if (DTYPE == Q8_0 || DTYPE == Q4_0) {
        let block = word * PER_WORD / BLOCK;
        let scales = (token - info.shard_first_row) * info.row_words + info.cols / PER_WORD;
        if (!inside) {
            for (var j = 0u; j < PER_WORD; j++) { out[i * info.cols + word * PER_WORD + j] = 0.0; }
            return;
        }
        let scale = block_scale(table[scales + block / 2u], block);
        let first = i * info.cols + word * PER_WORD;
        for (var j = 0u; j < 4u; j++) {
            if (DTYPE == Q8_0) {
                out[first + j] = scale * unpack_bytes(bits)[j];
            } else {
                out[first + j] = scale * unpack_nibbles(bits)[j];
                out[first + 4u + j] = scale * unpack_nibbles(bits >> 4u)[j];
            }
        }
    } else {
        let pair = unpack_pair(bits, DTYPE);
        out[i * info.cols + 2u * word] = pair.x;
        out[i * info.cols + 2u * word + 1u] = pair.y;
    }
}
