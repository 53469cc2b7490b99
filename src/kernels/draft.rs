//! Drafts of the next tokens of a sequence by prompt lookup (Saxena 2023, "Prompt Lookup Decoding"): the tokens that
//! followed when the text last looked as it does now. The whole text is searched, whether or not its tokens are still
//! cached.
//!
//! Contract: `text` is u32 `[4 + room]`: the number of its tokens, those of the prompt among them, two unused words,
//! and the ids. First the ids that the sequence has sampled since the last launch are appended, from its ring in the
//! state: `step + prompt − tokens` of them, where `step` is in the header. If these are more than the ring holds, or
//! if the text has no room for them, it stays as it is and there are no drafts.
//!
//! A place before the last token matches with the number of tokens, at most 6, that are equal when both endings are
//! compared backwards from the place and from the last token. The place with the longest match is taken, the latest
//! among equals. Let `next` be the token behind it. `state[drafts_offset]` becomes the pending token, and
//! `state[drafts_offset + j]`, for `0 < j < chunk`, the token at `next + (j − 1) mod (tokens − next)`. Without a match
//! each of them becomes the pending token. Other words of the state stay as they are.
//!
//! Bound: exact.
use super::cases::{Bound, Case, Check, StateBuilder, device_words};
use super::cube::launch;
use super::kernel::{Kernel, run};
use super::state;
use super::twin::slice_mut;
use super::uniform::uniform;
use super::variant::Variant;
use burn::backend::flex::FlexTensor;
use burn::backend::wgpu::CubeTensor;
use burn::tensor::{Int, Tensor};

const THREADS: usize = 256;

/// Words of a text before its ids.
pub const IDS: usize = 4;

/// Tokens of the longest endings that are compared.
const LONGEST: usize = 6;

/// The most tokens of a text: a place and the length of its match share a word.
pub const MOST_TOKENS: usize = 1 << 28;

/// Parameters of [`draft`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DraftSpec {
    /// Offset of the sequence's header in the state, in words.
    pub header: usize,
    /// Offset of its ring of sampled ids, in words.
    pub ring_offset: usize,
    /// Number of entries of the ring.
    pub ring: usize,
    /// Offset of the tokens that its next step forwards, in words.
    pub drafts_offset: usize,
    /// Tokens that the step forwards: the pending one, and `chunk − 1` drafts.
    pub chunk: usize,
    /// Ids that the text has room for, at most [`MOST_TOKENS`].
    pub room: usize,
}

/// Appends what was sampled to `text` and writes the tokens of the next step to `state`, both in place. Returns state
/// and text.
pub fn draft(state: Tensor<1, Int>, text: Tensor<1, Int>, spec: DraftSpec) -> (Tensor<1, Int>, Tensor<1, Int>) {
    let [state, text] = run(&spec, [state.into_dispatch(), text.into_dispatch()]);
    (Tensor::from_dispatch(state), Tensor::from_dispatch(text))
}

/// The words of a text that has only a prompt, with room for `room` ids. A prompt without room is left out, so that
/// there will be no drafts.
pub fn text_words(prompt: &[u32], room: usize) -> Vec<u32> {
    let fits = prompt.len() <= room;
    let mut words = vec![if fits { prompt.len() as u32 } else { 0 }, prompt.len() as u32, 0, 0];
    words.extend(prompt.iter().filter(|_| fits));
    words.resize(IDS + room, 0);
    words.resize(words.len().next_multiple_of(4), 0);
    words
}

uniform! {
    struct Info {
        header: u32, ring_offset: u32, ring: u32, drafts_offset: u32, chunk: u32, room: u32, pad0: u32, pad1: u32,
    }
}

impl DraftSpec {
    fn variant(&self) -> Variant {
        Variant::new::<Info>("draft", include_str!("../../shaders/draft.wgsl"), [("THREADS", THREADS as u32)])
    }
}

impl Kernel<2, 2> for DraftSpec {
    const IN_PLACE: &'static [(usize, &'static str)] = &[(0, "the state"), (1, "the text of a sequence")];

    fn launch(&self, [state, text]: [CubeTensor; 2]) -> [CubeTensor; 2] {
        let info = Info {
            header: self.header as u32,
            ring_offset: self.ring_offset as u32,
            ring: self.ring as u32,
            drafts_offset: self.drafts_offset as u32,
            chunk: self.chunk as u32,
            room: self.room as u32,
            pad0: 0,
            pad1: 0,
        };
        launch(&self.variant(), [1, 1, 1], &[&state, &text], info);
        [state, text]
    }

    fn twin(&self, [mut state, mut text]: [FlexTensor; 2]) -> [FlexTensor; 2] {
        twin(slice_mut(&mut state), slice_mut(&mut text), self);
        [state, text]
    }
}

pub(super) fn variants() -> Vec<Variant> {
    vec![DraftSpec { header: 0, ring_offset: 0, ring: 1, drafts_offset: 0, chunk: 1, room: 1 }.variant()]
}

fn twin(st: &mut [u32], text: &mut [u32], spec: &DraftSpec) {
    let (head, ids) = text.split_at_mut(IDS);
    let (before, sampled) = (head[0] as usize, st[spec.header + state::STEP] as usize);
    let fresh = sampled + head[1] as usize - before;
    let whole = fresh <= spec.ring && before + fresh <= spec.room;
    if whole {
        for (id, step) in ids[before..before + fresh].iter_mut().zip(sampled - fresh..) {
            *id = st[spec.ring_offset + step % spec.ring];
        }
        head[0] += fresh as u32;
    }
    let text = &ids[..head[0] as usize];
    let length = |place: usize| {
        let endings = text[..=place].iter().rev().zip(text.iter().rev());
        endings.take(LONGEST).take_while(|(a, b)| a == b).count()
    };
    let places = 0..if whole { text.len().saturating_sub(1) } else { 0 };
    let matched = places.map(|place| (length(place), place)).filter(|(length, _)| *length > 0).max();
    let pending = st[spec.header + state::TOKEN];
    st[spec.drafts_offset] = pending;
    for j in 1..spec.chunk {
        let draft = matched.map(|(_, place)| text[place + 1 + (j - 1) % (text.len() - place - 1)]);
        st[spec.drafts_offset + j] = draft.unwrap_or(pending);
    }
}

/// The name of a case, the prompt, the tokens that were sampled, how many of them the text has already, the room of the
/// text, and the chunk.
type Situation = (&'static str, Vec<u32>, Vec<u32>, usize, usize, usize);

/// No match, a match of one token, of more than the longest ending, and several of which the latest is taken; a text
/// that ends before there are enough drafts; a ring that has wrapped around; a text that is full, or has lost tokens; a
/// text of one token; a long text.
pub(super) fn cases() -> Vec<Case> {
    let words = |count: usize, of: u32, seed: u32| -> Vec<u32> {
        let next = |i: usize| (i as u32 + 1).wrapping_mul(2_654_435_761 ^ seed) >> 16;
        (0..count).map(|i| next(i) % of).collect()
    };
    let whole = |prompt: &[u32], tokens: &[u32]| [prompt, tokens].concat();
    let prompt = [7, 8, 9, 1, 2, 3, 4, 5, 6, 7];
    let cases: Vec<Situation> = vec![
        ("no match", prompt.to_vec(), vec![11, 12], 0, 40, 4),
        ("one token", prompt.to_vec(), vec![11, 2], 1, 40, 4),
        ("latest of the longest", whole(&prompt, &[2, 3, 50, 2, 3, 60, 3, 70]), vec![2, 3], 0, 40, 4),
        ("more than the longest", whole(&prompt, &prompt), vec![1, 2, 3, 4, 5, 6, 7], 3, 60, 8),
        ("end of the text", vec![1], vec![5, 6, 5, 6], 2, 40, 8),
        ("equal tokens", vec![4], vec![4, 4], 0, 40, 5),
        ("wrapped ring", prompt.to_vec(), words(23, 3, 5), 12, 60, 4),
        ("full text", prompt.to_vec(), vec![1, 2, 3], 0, 12, 4),
        ("lost tokens", prompt.to_vec(), words(23, 3, 5), 4, 60, 4),
        ("one token of text", vec![3], vec![], 0, 8, 3),
        ("no drafts", prompt.to_vec(), vec![1, 2, 3], 1, 40, 1),
        ("long text", words(5000, 40, 1), words(9, 40, 2), 3, 6000, 4),
        ("two matches of one length", words(3000, 4000, 3), vec![], 0, 3000, 8),
    ];
    let ring = 16;
    let case = |(name, prompt, sampled, had, room, chunk): Situation| {
        let name = format!("{name}: prompt {} sampled {} room {room} chunk {chunk}", prompt.len(), sampled.len());
        Case::new("draft", name, move |device| {
            let steps = sampled.len() as u32;
            let pending = sampled.last().copied().unwrap_or(99);
            let rings: Vec<u32> = (0..2 * ring).map(|i| 1000 + i as u32).collect();
            let builder = StateBuilder::new(2, 1, 1)
                .tokens(&[1234, pending])
                .steps(&[77, steps])
                .ring(ring)
                .map(&[0])
                .drafts(&[555; 2 * state::DRAFTED]);
            let (rings_offset, drafts_offset) =
                (builder.row_seq_offset() - 2 * ring, builder.drafts_offset() + state::DRAFTED);
            let mut words = builder.build();
            words[rings_offset..][..2 * ring].copy_from_slice(&rings);
            for (step, id) in sampled.iter().enumerate() {
                words[rings_offset + ring + step % ring] = *id;
            }
            let mut text = text_words(&prompt, room);
            text[0] += had as u32;
            text[IDS + prompt.len()..][..had].copy_from_slice(&sampled[..had]);
            let spec =
                DraftSpec { header: state::SEQ, ring_offset: rings_offset + ring, ring, drafts_offset, chunk, room };
            let (state, text) = draft(device_words(words, device), device_words(text, device), spec);
            vec![Check::u32("state", state, 1, Bound::Exact), Check::u32("text", text, 1, Bound::Exact)]
        })
    };
    cases.into_iter().map(case).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rule by a second implementation that does not share code with the twin: strings of tokens.
    #[test]
    fn drafts_follow_the_latest_of_the_longest_matches() {
        let drafts = |text: &[u32], chunk: usize| {
            let mut st = vec![0; state::SEQ + state::DRAFTED + 16];
            st[state::TOKEN] = text[text.len() - 1];
            let spec = DraftSpec {
                header: 0,
                ring_offset: state::SEQ + state::DRAFTED,
                ring: 16,
                drafts_offset: state::SEQ,
                chunk,
                room: text.len(),
            };
            let mut words = text_words(text, text.len());
            twin(&mut st, &mut words, &spec);
            st[state::SEQ + 1..state::SEQ + chunk].to_vec()
        };
        let naive = |text: &[u32], chunk: usize| {
            for length in (1..=LONGEST.min(text.len() - 1)).rev() {
                let ending = &text[text.len() - length..];
                let earlier = text[..text.len() - 1].windows(length).rposition(|window| window == ending);
                if let Some(at) = earlier {
                    let behind = &text[at + length..];
                    return behind.iter().cycle().take(chunk - 1).copied().collect::<Vec<u32>>();
                }
            }
            vec![text[text.len() - 1]; chunk - 1]
        };
        assert_eq!(drafts(&[1, 2, 3, 9, 1, 2, 3, 8, 5, 2, 3], 4), [8, 5, 2]);
        let mut matched = 0;
        for seed in 0..400u32 {
            let count = 2 + seed as usize % 90;
            let text: Vec<u32> = (0..count as u32)
                .map(|i| (i * i + 7 * i * seed).wrapping_mul(2_654_435_761) >> 8)
                .map(|v| v % (2 + seed % 11))
                .collect();
            let chunk = 1 + seed as usize % 8;
            assert_eq!(drafts(&text, chunk), naive(&text, chunk), "seed {seed}: {text:?}");
            matched += usize::from(chunk > 1 && text[..count - 1].contains(&text[count - 1]));
        }
        assert!(matched > 200, "{matched} texts had a match");
    }
}
