//! Which conversations are held out.

use super::conversation::Conversation;
use super::load::LoadedConversation;
use rayon::prelude::*;
use std::collections::BTreeMap;

/// This many conversations may be held out of any number, however small the share that is asked for.
const FEW: usize = 8;

/// Conversations on both sides, and a note about the split.
pub(super) struct HeldOutSplit {
    pub(super) train: Vec<LoadedConversation>,
    pub(super) held_out: Vec<LoadedConversation>,
    pub(super) note: Option<String>,
}

/// Holds out a share `fraction` of `found`, chosen by a hash of the first question: equal questions stay together, and adding
/// data moves no conversation to the other side. Questions that too many conversations begin with are not held out; if none
/// is left, the hash of the whole conversation decides.
pub(super) fn split(found: Vec<LoadedConversation>, fraction: f64) -> HeldOutSplit {
    if fraction == 0.0 || found.len() < 2 {
        return HeldOutSplit { train: found, held_out: Vec::new(), note: None };
    }
    let by_opening = choose(&found, fraction, |conversation| conversation.opening().to_owned());
    if by_opening.contains(&true) {
        return divide(found, &by_opening, None);
    }
    let by_whole = choose(&found, fraction, Conversation::whole);
    let note = if by_whole.contains(&true) {
        "note: most conversations begin alike, so equal first questions are on both sides of the held-out split"
    } else {
        "note: nothing is held out, because most conversations are the same: give data.val, or set data.val_fraction=0"
    };
    divide(found, &by_whole, Some(note.into()))
}

/// Whether each of `found` is held out; those of equal `key` are together.
fn choose(found: &[LoadedConversation], fraction: f64, key: impl Fn(&Conversation) -> String + Sync) -> Vec<bool> {
    let hashes = found.par_iter().map(|found| {
        let hash = blake3::derive_key("llama-lite held-out conversations v1", key(&found.conversation).as_bytes());
        u64::from_le_bytes(hash[..8].try_into().unwrap_or_default())
    });
    let hashes: Vec<u64> = hashes.collect();
    let mut sizes: BTreeMap<u64, usize> = BTreeMap::new();
    hashes.iter().for_each(|hash| *sizes.entry(*hash).or_default() += 1);
    // Chance may put more than the share below the limit: at most twice the share is held out, or FEW if that is more.
    let count = found.len();
    let most = ((2.0 * fraction * count as f64).ceil() as usize).max(FEW.min(count / 2)).clamp(1, count - 1);
    let limit = (fraction * 2f64.powi(64)) as u64;
    let mut held_out = 0;
    let mut taken = Vec::new();
    for (hash, size) in sizes {
        // Of few conversations at least one is held out.
        if (hash >= limit && held_out > 0) || held_out >= most {
            break;
        }
        if held_out + size <= most {
            held_out += size;
            taken.push(hash);
        }
    }
    hashes.iter().map(|hash| taken.binary_search(hash).is_ok()).collect()
}

fn divide(found: Vec<LoadedConversation>, is_held_out: &[bool], note: Option<String>) -> HeldOutSplit {
    let mut split = HeldOutSplit { train: Vec::new(), held_out: Vec::new(), note };
    for (found, is_held_out) in found.into_iter().zip(is_held_out) {
        if *is_held_out { split.held_out.push(found) } else { split.train.push(found) }
    }
    split
}

#[cfg(test)]
mod tests {
    use super::super::conversation::Format;
    use super::*;

    fn found(prompts: impl Iterator<Item = String>) -> Vec<LoadedConversation> {
        let one = |(i, prompt): (usize, String)| LoadedConversation {
            file: "f".into(),
            line: i as u64,
            format: Format::Prompt,
            conversation: Conversation::Plain { prompt, completion: i.to_string() },
        };
        prompts.enumerate().map(one).collect()
    }

    fn counts(prompts: impl Iterator<Item = String>, fraction: f64) -> (usize, usize, bool) {
        let split = split(found(prompts), fraction);
        (split.train.len(), split.held_out.len(), split.note.is_some())
    }

    #[test]
    fn the_share_is_about_what_is_asked_for_whatever_the_prompts_are() {
        let (train, held_out, said) = counts((0..5000).map(|i| i.to_string()), 0.01);
        assert!(train + held_out == 5000 && (30..80).contains(&held_out) && !said, "{held_out}");
        assert_eq!(counts((0..2).map(|i| i.to_string()), 0.01), (1, 1, false));
        // All prompts are the same.
        let (_, held_out, said) = counts((0..200).map(|_| String::new()), 0.01);
        assert!((1..=8).contains(&held_out) && said, "{held_out}");
        // Half of them are, and questions are still on one side each.
        let (_, held_out, said) = counts((0..1000).map(|i| if i % 2 == 0 { "Hi".into() } else { i.to_string() }), 0.05);
        assert!((1..=100).contains(&held_out) && !said, "{held_out}");
        assert_eq!(counts((0..50).map(|i| i.to_string()), 0.0), (50, 0, false));
    }

    #[test]
    fn equal_prompts_are_together_and_equal_conversations_are_never_parted() {
        let halves = split(found((0..600).map(|i| (i / 3).to_string())), 0.1);
        let asked =
            |list: &[LoadedConversation]| list.iter().map(|f| f.conversation.opening().to_owned()).collect::<Vec<_>>();
        let train = asked(&halves.train);
        assert!(!halves.held_out.is_empty() && asked(&halves.held_out).iter().all(|prompt| !train.contains(prompt)));
        let same = (0..50).map(|_| found(std::iter::once("a".to_owned())).remove(0)).collect();
        let nothing = split(same, 0.2);
        assert!(nothing.held_out.is_empty() && nothing.train.len() == 50 && nothing.note.unwrap().contains("nothing"));
    }

    #[test]
    fn more_data_move_none() {
        let held = |n: usize| {
            let split = split(found((0..n).map(|i| i.to_string())), 0.1);
            split.held_out.iter().map(|f| f.line).collect::<Vec<_>>()
        };
        let (few, many) = (held(300), held(600));
        assert!(few.iter().all(|line| many.contains(line)), "{few:?} {many:?}");
    }
}
