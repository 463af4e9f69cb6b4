//! How much of a very long text has to be tokenized.
//!
//! A model keeps a few hundred tokens, so of a 10 MB text only the beginning (or the end) matters.
//! Tokenizing a piece gives the same kept tokens as tokenizing the whole if the piece ends where
//! words are independent, which for all supported tokenizers (WordPiece, Unigram and BPE behind a
//! splitter on whitespace) is at whitespace. A piece is accepted only if it yields more tokens than
//! can be kept, otherwise it grows fourfold: a text made of one huge word, which WordPiece maps to a
//! single `[UNK]`, or of spaces only, is in the end tokenized whole.
//!
//! The one approximation: where half a piece (kilobytes) holds no whitespace, as in Chinese, it is
//! cut between two characters, and the tokens near the cut may differ from those of the whole text.
//! They are beyond [`MARGIN`], so they are cut off; the best segmentation of running text settles
//! within a few characters.

use super::Direction;

/// Bytes per kept token of the first piece. Running text has 3 to 6 bytes a token in every script
/// of the evaluation texts, so the first piece almost always suffices.
const BYTES_PER_TOKEN: usize = 16;

/// The shortest first piece: below this, tokenizing the whole text is cheap (about 1 ms).
const SHORTEST_PIECE: usize = 8 * 1024;

/// Tokens that a piece must yield beyond those that can be kept. WordPiece maps words of more than
/// 100 characters to `[UNK]`; a cut inside such a word may leave up to 100 false tokens.
pub(super) const MARGIN: usize = 128;

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
}
