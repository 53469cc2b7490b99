// Sorts choices by their expert, for products that read an expert's rows once for several vectors. A tile is an
// expert and up to N of its choices (numbers into `chosen`), filled up with NONE. The tiles of an expert follow each
// other, its choices keep their order, and the tiles that are left have no expert. One workgroup does it all: an
// invocation counts, and later places, the choices of each of its experts.
// Constants: THREADS, MOST (of experts), N.
@group(0) @binding(0) var<storage, read_write> chosen: array<u32>;    // [choices]
@group(0) @binding(1) var<storage, read_write> tiles: array<u32>;     // [tiles, 1 + N]
struct Info { choices: u32, experts: u32, tiles: u32, pad0: u32 }
@group(0) @binding(2) var<uniform> info: Info;

const NONE = 0xffffffffu;
var<workgroup> used: array<u32, MOST>;    // tiles of each expert

@compute @workgroup_size(THREADS)
fn main(@builtin(local_invocation_index) thread: u32) {
    for (var e = thread; e < info.experts; e += THREADS) {
        var count = 0u;
        for (var i = 0u; i < info.choices; i++) { count += select(0u, 1u, chosen[i] == e); }
        used[e] = (count + N - 1u) / N;
    }
    workgroupBarrier();
    var all = 0u;
    for (var e = 0u; e < info.experts; e++) { all += used[e]; }
    for (var e = thread; e < info.experts; e += THREADS) {
        var first = 0u;
        for (var lower = 0u; lower < e; lower++) { first += used[lower]; }
        var place = 0u;
        for (var i = 0u; i < info.choices; i++) {
            if (chosen[i] != e) { continue; }
            let at = (first + place / N) * (1u + N);
            if (place % N == 0u) { tiles[at] = e; }
            tiles[at + 1u + place % N] = i;
            place++;
        }
        for (; place < used[e] * N; place++) { tiles[(first + place / N) * (1u + N) + 1u + place % N] = NONE; }
    }
    for (var i = all * (1u + N) + thread; i < info.tiles * (1u + N); i += THREADS) { tiles[i] = NONE; }
}
