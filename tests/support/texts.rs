//! Texts of many kinds and lengths, as token ids.

use moeshard_tensor::dtype::DType;

use crate::compare::Random;
use crate::service::Service;

/// Prose, questions, code, numbers, several languages and scripts.
const SENTENCES: [&str; 30] = [
    "The ferry to the island leaves at six unless the wind is above forty knots.",
    "How do I get back the money that was charged twice to my card?",
    "Photosynthesis converts light into chemical energy stored in sugars.",
    "fn main() { let xs: Vec<u32> = (0..10).collect(); println!(\"{xs:?}\"); }",
    "Der Zug nach München hat heute leider zwanzig Minuten Verspätung.",
    "She had never liked the house, and the house, she suspected, had never liked her.",
    "3.14159 26535 89793 23846 26433 83279 50288 41971",
    "Le chat dort sur le canapé pendant que la pluie tombe.",
    "My virtual card does not work in the shop, but it works online.",
    "機械学習のモデルを小さなサーバーで動かす。",
    "SELECT name, COUNT(*) FROM orders WHERE total > 100 GROUP BY name;",
    "Add two eggs, a pinch of salt and 250 g of flour, and whisk until smooth.",
    "No!",
    "The defendant appealed on the ground that the evidence had been obtained unlawfully.",
    "¿Dónde está la biblioteca más cercana?",
    "Inflation slowed to 2.1% in March, the lowest rate in three years.",
    "lol that was sooo good 😂😂 can't wait for the next one!!!",
    "Москва слезам не верит.",
    "The proof is by induction on the number of edges of the graph.",
    "Quarterly revenue rose, although margins narrowed because of higher freight costs.",
    "https://example.org/a/b?c=d&e=f#g",
    "To be, or not to be, that is the question.",
    "Patients with a fever above 39 °C for more than three days should see a doctor.",
    "A quick brown fox jumps over the lazy dog near the river bank.",
    "我想取消昨天的转账。",
    "Error: expected `;`, found `}` at line 42, column 7",
    "Il treno per Roma parte dal binario quattro alle nove e mezza.",
    "Every expert is split across all ranks, so no rank waits for a busy one.",
    "In 1969, two people walked on the Moon while a third circled above them.",
    "wht is teh wether lke tmrw",
];

/// `n` texts of 1 token to as many as the model takes, most of them short; the same every time.
///
/// Texts of one or two tokens are words without the special tokens, which no text through a
/// tokenizer is, but ids may be.
///
/// # Panics
/// If the tokenizer fails.
pub fn ids(folder: &std::path::Path, n: usize) -> Vec<Vec<u32>> {
    let service = Service::start(folder, 1, DType::F32);
    let longest = service.model.settings.max_length;
    let last = |ids: &Vec<u32>| *ids.last().expect("a token");
    let end = service.ids(&["no".to_owned()]).first().map(last);
    let text = |i: usize| {
        let order = Random(i as u64).permutation(SENTENCES.len());
        let sentences: Vec<_> = order.iter().map(|&s| SENTENCES[s]).collect();
        sentences.join(" ").repeat(2)
    };
    let whole = service.ids(&(0..n).map(text).collect::<Vec<_>>());
    let cut = |(i, ids): (usize, &Vec<u32>)| {
        assert_eq!(ids.len(), longest, "long enough to be cut");
        let part = i as f64 / (n - 1) as f64;
        match 1 + (part.powi(3) * (longest - 1) as f64).round() as usize {
            n_tokens @ 1..=2 => ids[1..=n_tokens].to_vec(),
            n_tokens => ids[..n_tokens - 1].iter().copied().chain(end).collect(),
        }
    };
    whole.iter().enumerate().map(cut).collect()
}
