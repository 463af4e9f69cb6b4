//! How much of a very long text has to be tokenized.
//!
//! A model keeps a few hundred tokens, so of a 10 MB text only the beginning (or the end) matters.
//! Tokenizing a piece gives the same kept tokens as tokenizing the whole if the piece ends where
//! words are independent, which for all supported tokenizers (WordPiece, Unigram and BPE behind a
//! splitter on whitespace) is at whitespace. A piece is accepted only if it yields more tokens than
//! can be kept, otherwise it grows fourfold, if need be to the whole text.
//!
//! Texts that yield few tokens, such as one huge word (which WordPiece maps to a single `[UNK]`) or a
//! desert of spaces, would so be tokenized whole, at 0.4 s a megabyte. [`shrink`] shortens such runs
//! first: a word to a length that either fills all the room there is or is one `[UNK]` anyway, spaces
//! to a length that no tokenizer tells from more.
//!
//! The approximations: where half a piece (kilobytes) holds no whitespace, as in Chinese, it is cut
//! between two characters, and the tokens near the cut may differ from those of the whole text. They
//! are beyond [`MARGIN`], so they are cut off; the best segmentation of running text settles within
//! a few characters. And of a shortened run, what follows a punctuation mark kilobytes into it is
//! not seen, nor are more than [`LONGEST_SPACE`] bytes of spaces by a tokenizer that counts them.

use std::borrow::Cow;

use super::Direction;

/// Bytes per kept token of the first piece. Running text has 3 to 6 bytes a token in every script
/// of the evaluation texts, so the first piece almost always suffices.
const BYTES_PER_TOKEN: usize = 16;

/// The shortest first piece: below this, tokenizing the whole text is cheap (about 1 ms).
const SHORTEST_PIECE: usize = 8 * 1024;

/// Tokens that a piece must yield beyond those that can be kept. WordPiece maps words of more than
/// 100 characters to `[UNK]`; a cut inside such a word may leave up to 100 false tokens.
pub(super) const MARGIN: usize = 128;

/// Bytes of whitespace that [`shrink`] leaves of a longer run.
const LONGEST_SPACE: usize = 1024;

/// Bytes of a word that [`shrink`] leaves for each token that can be kept: no token of the supported
/// vocabularies is longer, so a shortened word fills the room, unless it is one `[UNK]`.
const LONGEST_TOKEN: usize = 64;

/// Shortens huge words and huge runs of whitespace to what can matter.
pub(super) fn shrink(text: &str, n_kept: usize, direction: Direction) -> Cow<'_, str> {
    let longest_word = n_kept.saturating_add(MARGIN).saturating_mul(LONGEST_TOKEN);
    let longest_space = LONGEST_SPACE.min(longest_word);
    let mut shrunk = String::new();
    let mut n_space = 0;
    // A run is a word, which may be empty, and the one whitespace character behind it.
    for run in text.split_inclusive(char::is_whitespace) {
        let word = run.trim_end_matches(char::is_whitespace);
        if !word.is_empty() {
            n_space = 0;
            shrunk.push_str(shorten(word, longest_word, direction));
        }
        let space = &run[word.len()..];
        n_space += space.len();
        if n_space <= longest_space {
            shrunk.push_str(space);
        }
    }
    if shrunk.len() == text.len() {
        text.into()
    } else {
        shrunk.into()
    }
}

/// The first (or, truncating left, the last) `length` bytes of a word.
fn shorten(word: &str, length: usize, direction: Direction) -> &str {
    match direction {
        _ if word.len() <= length => word,
        Direction::Right => &word[..word.floor_char_boundary(length)],
        Direction::Left => &word[word.ceil_char_boundary(word.len() - length)..],
    }
}

/// Pieces of `text` to try one after the other; the last is the whole text.
pub(super) fn pieces(
    text: &str,
    n_kept: usize,
    direction: Direction,
) -> impl Iterator<Item = &str> {
    let first = n_kept
        .saturating_add(MARGIN)
        .saturating_mul(BYTES_PER_TOKEN)
        .max(SHORTEST_PIECE);
    let lengths = std::iter::successors(Some(first), |length| length.checked_mul(4));
    let shorter = lengths.take_while(|&length| length < text.len());
    shorter
        .map(move |length| piece(text, length, direction))
        .chain(std::iter::once(text))
}

/// About `length` bytes of the beginning (or, truncating left, of the end) of `text`.
fn piece(text: &str, length: usize, direction: Direction) -> &str {
    match direction {
        Direction::Right => {
            let piece = &text[..text.floor_char_boundary(length)];
            match piece.rfind(char::is_whitespace) {
                Some(end) if end >= length / 2 => &piece[..end],
                _ => piece,
            }
        }
        Direction::Left => {
            let piece = &text[text.ceil_char_boundary(text.len() - length)..];
            match piece.find(char::is_whitespace) {
                Some(start) if start <= length / 2 => &piece[start..],
                _ => piece,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_texts_are_whole() {
        assert_eq!(
            pieces("a b c", 510, Direction::Right).collect::<Vec<_>>(),
            ["a b c"]
        );
    }

    #[test]
    fn pieces_grow_to_the_whole_text_and_end_at_whitespace() {
        let text = "word ".repeat(100_000);
        for direction in [Direction::Left, Direction::Right] {
            let pieces: Vec<&str> = pieces(&text, 10, direction).collect();
            assert_eq!(*pieces.last().expect("one"), text);
            assert!(pieces.is_sorted_by_key(|piece| piece.len()));
            assert!(pieces[0].len() <= SHORTEST_PIECE && pieces[0].len() > SHORTEST_PIECE / 2);
            for piece in pieces {
                match direction {
                    Direction::Right => assert!(text.starts_with(piece)),
                    Direction::Left => assert!(text.ends_with(piece)),
                }
                assert!(piece.split_whitespace().all(|word| word == "word"));
            }
        }
    }

    #[test]
    fn a_cut_never_splits_a_character() {
        let text = "héé漢字🦀".repeat(20_000);
        for direction in [Direction::Left, Direction::Right] {
            assert!(pieces(&text, 100, direction).all(|piece| !piece.is_empty()));
        }
    }

    #[test]
    fn only_huge_runs_shrink() {
        let ordinary = "a few  words\n\n漢字 ".repeat(1000);
        assert!(matches!(
            shrink(&ordinary, 10, Direction::Right),
            Cow::Borrowed(_)
        ));
        let longest = (10 + MARGIN) * LONGEST_TOKEN;
        let text = format!("hello {}b {}world", "é".repeat(90_000), " ".repeat(90_000));
        let right = format!(
            "hello {} {}world",
            "é".repeat(longest / 2),
            " ".repeat(1023)
        );
        assert_eq!(shrink(&text, 10, Direction::Right), right);
        let left = shrink(&text, 10, Direction::Left);
        assert!(left.starts_with("hello é") && left.contains("éb ") && left.len() <= right.len());
    }
}
