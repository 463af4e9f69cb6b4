use super::*;

const TOKENIZER: &[u8] = include_bytes!("../../tests/data/tokenizer.json");
const CLS: u32 = 2;
const SEP: u32 = 3;
const HELLO: u32 = 4;
const WORLD: u32 = 5;

fn encoder() -> Encoder {
    Encoder::from_json(TOKENIZER).expect("the test's tokenizer parses")
}

fn rule(max_length: usize) -> Rule {
    Rule {
        max_length,
        vocab_size: 100,
        truncate: true,
        direction: Direction::Right,
    }
}

fn text(text: &str) -> Input {
    Input::Text(text.to_owned())
}

#[test]
fn the_files_own_truncation_and_padding_are_ignored() {
    let check = |input: &Input, prompt, rule, ids: &[u32], type_ids: &[u32]| {
        let encoded = encoder().encode(input, prompt, rule).expect("a good input");
        assert_eq!(encoded.ids, ids);
        assert_eq!(encoded.type_ids, type_ids);
    };
    let hello = "hello world hello world";
    let full = [CLS, HELLO, WORLD, HELLO, WORLD, SEP];
    check(&text(hello), None, rule(8), &full, &[0; 6]);
    check(&text(hello), None, rule(6), &full, &[0; 6]);
    check(
        &text(hello),
        None,
        rule(4),
        &[CLS, HELLO, WORLD, SEP],
        &[0; 4],
    );
    let left = Rule {
        direction: Direction::Left,
        ..rule(5)
    };
    check(
        &text(hello),
        None,
        left,
        &[CLS, WORLD, HELLO, WORLD, SEP],
        &[0; 5],
    );
    // A prompt is put before the text, and counts.
    check(
        &text("world"),
        Some("hello "),
        rule(8),
        &[CLS, HELLO, WORLD, SEP],
        &[0; 4],
    );
    // A pair; the longer text is cut first.
    let pair = Input::Pair("hello".to_owned(), "world world world".to_owned());
    let expect = [CLS, HELLO, SEP, WORLD, WORLD, WORLD, SEP];
    check(&pair, None, rule(8), &expect, &[0, 0, 0, 1, 1, 1, 1]);
    check(
        &pair,
        None,
        rule(5),
        &[CLS, HELLO, SEP, WORLD, SEP],
        &[0, 0, 0, 1, 1],
    );
    // Ids are used as they are.
    let ids = Input::Ids(vec![7, 8, 9]);
    check(&ids, None, rule(8), &[7, 8, 9], &[0; 3]);
    check(&ids, None, rule(2), &[7, 8], &[0; 2]);
    check(
        &ids,
        None,
        Rule {
            direction: Direction::Left,
            ..rule(2)
        },
        &[8, 9],
        &[0; 2],
    );
}

#[test]
fn what_does_not_fit_is_refused_with_both_numbers() {
    let strict = Rule {
        truncate: false,
        ..rule(4)
    };
    let check = |input: &Input, expect| {
        assert_eq!(encoder().encode(input, None, strict), Err(expect));
    };
    let too_long = |n_tokens| SubmitError::TooLong {
        n_tokens,
        exact: true,
        max_length: 4,
    };
    check(&text("hello hello hello"), too_long(5));
    check(&Input::Ids(vec![1; 6]), too_long(6));
    check(
        &Input::Ids(vec![1, 100]),
        SubmitError::TokenId {
            id: 100,
            vocab_size: 100,
        },
    );
    assert!(encoder().encode(&text("hello hello"), None, strict).is_ok());
    assert!(matches!(
        Encoder::from_json(b"{}"),
        Err(SubmitError::Tokenizer(_))
    ));
}

#[test]
fn a_cut_text_has_the_tokens_of_the_whole() {
    let encoder = encoder();
    let long_word = "x".repeat(300);
    let texts = [
        "hello world, the cat sat! ".repeat(5_000),
        "漢字".repeat(30_000),
        format!("{} hello world", " ".repeat(90_000)),
        "hello ".repeat(10) + &"y".repeat(90_000),
        format!("{long_word} cat ").repeat(1_000),
    ];
    for text in texts {
        let all = encoder.tokenize(&text, false).expect("tokens");
        for direction in [Direction::Left, Direction::Right] {
            let rule = Rule {
                direction,
                ..rule(64)
            };
            let got = encoder
                .encode(&Input::Text(text.clone()), None, rule)
                .expect("ids")
                .ids;
            let n_kept = all.len().min(62);
            let kept = match direction {
                Direction::Right => &all[..n_kept],
                Direction::Left => &all[all.len() - n_kept..],
            };
            let ids: Vec<u32> = kept.iter().map(|piece| piece.id).collect();
            assert_eq!(got[1..got.len() - 1], ids);
        }
    }
}

#[test]
fn ten_megabytes_are_counted_only_as_far_as_needed() {
    let text = text(&"hello world ".repeat(900_000));
    let strict = Rule {
        truncate: false,
        ..rule(512)
    };
    let error = encoder().encode(&text, None, strict).expect_err("too long");
    let SubmitError::TooLong {
        n_tokens,
        exact: false,
        max_length: 512,
    } = error
    else {
        panic!("{error}")
    };
    assert!((640..10_000).contains(&n_tokens));
    let cut = encoder().encode(&text, None, rule(512)).expect("cut");
    assert_eq!(cut.ids.len(), 512);
    // The whole text would take seconds.
    assert!(bytes_tokenized(&text, 510) < 20_000);
}

/// Bytes that the tokenizer has to look at for the first `room` tokens of a text.
fn bytes_tokenized(input: &Input, room: usize) -> usize {
    let Input::Text(text) = input else {
        panic!("a text, not {input:?}")
    };
    let encoder = encoder();
    let mut n_bytes = 0;
    let counting = |piece: &str| {
        n_bytes += piece.len();
        encoder.tokenizer.encode_fast(piece, false).map_err(failed)
    };
    first_tokens(text, room, Direction::Right, counting).expect("tokens");
    n_bytes
}

#[test]
fn a_token_that_the_model_does_not_know_is_refused() {
    let small = |vocab_size| Rule {
        vocab_size,
        ..rule(8)
    };
    let pair = Input::Pair("hello".to_owned(), "world".to_owned());
    for input in [text("hello world"), pair] {
        assert!(encoder().encode(&input, None, small(6)).is_ok());
        let refused = SubmitError::TokenId {
            id: WORLD,
            vocab_size: 5,
        };
        assert_eq!(encoder().encode(&input, None, small(5)), Err(refused));
    }
    // What is cut off does no harm.
    let cut = Rule {
        vocab_size: 5,
        ..rule(3)
    };
    assert!(encoder().encode(&text("hello world"), None, cut).is_ok());
}

#[test]
fn special_ids_and_decoding() {
    let encoder = encoder();
    assert_eq!(encoder.special_ids(), ([CLS].as_slice(), [SEP].as_slice()));
    let ids = [CLS, HELLO, WORLD, SEP];
    assert_eq!(encoder.decode(&ids, true).expect("text"), "hello world");
    assert_eq!(
        encoder.decode(&ids, false).expect("text"),
        "[CLS] hello world [SEP]"
    );
    let pieces = encoder.tokenize("Hello cats", true).expect("pieces");
    let texts: Vec<&str> = pieces.iter().map(|piece| piece.text.as_str()).collect();
    assert_eq!(texts, ["[CLS]", "hello", "cat", "##s", "[SEP]"]);
    assert_eq!((pieces[1].start, pieces[1].stop), (Some(0), Some(5)));
    assert_eq!((pieces[0].special, pieces[0].start), (true, None));
}

#[test]
fn ten_megabytes_without_a_word_do_not_stall() {
    const UNK: u32 = 1;
    let cases = [
        ("x", vec![CLS, UNK, HELLO, SEP]),
        (" ", vec![CLS, HELLO, SEP]),
    ];
    for (filler, expect) in cases {
        let desert = text(&(filler.repeat(10_000_000) + " hello"));
        let encoded = encoder().encode(&desert, None, rule(512));
        assert_eq!(encoded.expect("an encoding").ids, expect);
        // What `shrink` leaves of such a text, in growing pieces.
        assert!(bytes_tokenized(&desert, 510) < 120_000);
    }
}
