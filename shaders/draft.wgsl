// Drafts for the next step of one sequence: its text is searched for the place that ends like the text itself, and the
// tokens behind that place are the drafts. What was sampled since the last launch is appended to the text before.
// One workgroup.
// Constants: THREADS (a power of two).
@group(0) @binding(0) var<storage, read_write> state: array<u32>;
@group(0) @binding(1) var<storage, read_write> text: array<u32>;     // [4 + room]: tokens, prompt tokens, 2 unused; ids
struct Info { header: u32, ring_offset: u32, ring: u32, drafts_offset: u32, chunk: u32, room: u32, pad0: u32, pad1: u32 }
@group(0) @binding(2) var<uniform> info: Info;

const IDS = 4u;
const LONGEST = 6u;             // of two equal endings that are compared
const PLACES = 0x10000000u;     // a match is its length times this, plus its place

var<workgroup> best: array<u32, THREADS>;
var<workgroup> whole: vec2<u32>;    // tokens of the text; 1 if none is missing

@compute @workgroup_size(THREADS)
fn main(@builtin(local_invocation_index) thread: u32) {
    if (thread == 0u) {
        let before = text[0];
        let sampled = state[info.header + SEQ_STEP];
        // The text has the prompt and the tokens that were sampled until the last launch.
        let fresh = sampled + text[1] - before;
        var tokens = before;
        if (fresh <= info.ring && before + fresh <= info.room) {
            for (var i = 0u; i < fresh; i++) {
                text[IDS + tokens] = state[info.ring_offset + (sampled - fresh + i) % info.ring];
                tokens++;
            }
            text[0] = tokens;
            whole = vec2<u32>(tokens, 1u);
        } else {
            whole = vec2<u32>(tokens, 0u);
        }
    }
    storageBarrier();
    let known = workgroupUniformLoad(&whole);
    let tokens = known.x;
    var found = 0u;
    if (known.y == 1u && tokens >= 2u) {
        for (var place = thread; place < tokens - 1u; place += THREADS) {
            var length = 0u;
            while (length < LONGEST && length <= place) {
                if (text[IDS + place - length] != text[IDS + tokens - 1u - length]) { break; }
                length++;
            }
            // The longest match, and the latest of these.
            if (length > 0u) { found = max(found, length * PLACES + place); }
        }
    }
    best[thread] = found;
    for (var half = THREADS / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if (thread < half) { best[thread] = max(best[thread], best[thread + half]); }
    }
    workgroupBarrier();
    if (thread >= info.chunk) { return; }
    var id = state[info.header + SEQ_TOKEN];
    if (thread > 0u && best[0] > 0u) {
        let next = best[0] % PLACES + 1u;
        // If the text ends before enough drafts are found, what follows the place is repeated.
        id = text[IDS + next + (thread - 1u) % (tokens - next)];
    }
    state[info.drafts_offset + thread] = id;
}
