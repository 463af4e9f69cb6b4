//! Text of the page: what strangers wrote made harmless, and numbers as people read them.

use std::fmt::{self, Display, Write as _};

/// Text from elsewhere (names of runs, of data): never markup.
pub struct Escaped<'a>(pub &'a str);

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for char in self.0.chars() {
            match char {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                // Control characters are an error in XML; whoever saves a picture has a whole one.
                char if char.is_control() => f.write_char(' ')?,
                char => f.write_char(char)?,
            }
        }
        Ok(())
    }
}

/// At most `n_chars` characters of a text, with an ellipsis if there were more.
pub fn shortened(text: &str, n_chars: usize) -> String {
    match text.chars().count() <= n_chars {
        true => text.to_owned(),
        false => {
            let start: String = text.chars().take(n_chars.saturating_sub(1)).collect();
            format!("{}…", start.trim_end())
        }
    }
}

/// A count with its thousands set apart: `12,345`.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A count that may be a mean: whole numbers without decimals.
pub fn mean_count(number: f64) -> String {
    match number.fract() == 0.0 && (0.0..1e15).contains(&number) {
        true => count(number as u64),
        false => number_text(number),
    }
}

/// Bytes that were sent, in decimal units, three digits: `3.14 GB`.
#[must_use]
pub fn bytes(number: f64) -> String {
    let units = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    scaled(number, &units)
}

/// Seconds: `0.42 s`, `75.1 s`, `12 min`, `3.4 h`.
pub fn seconds(number: f64) -> String {
    match number {
        _ if !number.is_finite() => "–".to_owned(),
        s if s < 120.0 => format!("{} s", three_digits(s)),
        s if s < 7200.0 => format!("{} min", three_digits(s / 60.0)),
        s => format!("{} h", three_digits(s / 3600.0)),
    }
}

/// A share as a percentage with `decimals`; a dash if it is not a number.
pub fn percent(share: f64, decimals: usize) -> String {
    match share.is_finite() {
        true => format!("{:.decimals$} %", share * 100.0),
        false => "–".to_owned(),
    }
}

/// Any number in three digits, as a power of ten if it is very large or small.
pub fn number_text(number: f64) -> String {
    let size = number.abs();
    match size {
        _ if !number.is_finite() => "–".to_owned(),
        0.0 => "0".to_owned(),
        1e-3..1e5 => three_digits(number),
        _ => {
            let exponent = size.log10().floor();
            let text = format!("{:.1}", number / 10f64.powf(exponent));
            format!(
                "{} × {}",
                text.trim_end_matches(".0"),
                power_of_ten(exponent as i32)
            )
        }
    }
}

/// A tick of a logarithmic axis: a power of ten by its exponent, others in digits.
pub fn log_tick(number: f64) -> String {
    let exponent = number.log10();
    match (exponent - exponent.round()).abs() < 1e-9 && !(-2.5..3.5).contains(&exponent) {
        true => power_of_ten(exponent.round() as i32),
        false => number_text(number),
    }
}

fn power_of_ten(exponent: i32) -> String {
    let superscript = |char| match char {
        '-' => '⁻',
        '1' => '¹',
        '2' => '²',
        '3' => '³',
        // The others follow one another.
        digit => char::from_u32(0x2070 + (digit as u32 - '0' as u32)).unwrap_or(digit),
    };
    let exponent: String = exponent.to_string().chars().map(superscript).collect();
    format!("10{exponent}")
}

fn scaled(number: f64, units: &[&str]) -> String {
    if !number.is_finite() {
        return "–".to_owned();
    }
    let (mut value, mut unit_idx) = (number, 0);
    // 999.5 would be rounded to four digits.
    while value.abs() >= 999.5 && unit_idx + 1 < units.len() {
        value /= 1000.0;
        unit_idx += 1;
    }
    format!("{} {}", three_digits(value), units[unit_idx])
}

// Up to three digits, no zeros at the end of decimals.
fn three_digits(number: f64) -> String {
    let decimals = match number.abs() {
        100.0.. => 0,
        10.0..100.0 => 1,
        1.0..10.0 => 2,
        0.1..1.0 => 3,
        0.01..0.1 => 4,
        _ => 5,
    };
    let text = format!("{number:.decimals$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markup_is_made_harmless() {
        let text = Escaped("<script>alert('a & \"b\"')</script>\u{0}").to_string();
        let expect = "&lt;script&gt;alert(&#39;a &amp; &quot;b&quot;&#39;)&lt;/script&gt; ";
        assert_eq!(text, expect);
    }

    #[test]
    fn numbers_are_short() {
        let check = |text: String, expect: &str| assert_eq!(text, expect);
        check(count(0), "0");
        check(count(999), "999");
        check(count(1_234_567), "1,234,567");
        check(mean_count(900.0), "900");
        check(mean_count(0.5), "0.5");
        check(bytes(0.0), "0 B");
        check(bytes(999.7), "1 kB");
        check(bytes(3_140_000_000.0), "3.14 GB");
        check(bytes(31_400_000.0), "31.4 MB");
        check(bytes(f64::NAN), "–");
        check(seconds(0.417), "0.417 s");
        check(seconds(754.0), "12.6 min");
        check(percent(0.90594, 2), "90.59 %");
        check(number_text(0.0), "0");
        check(number_text(-12.34), "-12.3");
        check(number_text(100.0), "100");
        check(number_text(3.2e-5), "3.2 × 10⁻⁵");
        check(number_text(2e17), "2 × 10¹⁷");
        check(log_tick(0.001), "10⁻³");
        check(log_tick(0.01), "0.01");
        check(log_tick(1e4), "10⁴");
        check(log_tick(0.5), "0.5");
    }

    #[test]
    fn long_names_end_in_an_ellipsis() {
        assert_eq!(shortened("short", 5), "short");
        assert_eq!(shortened("much too long", 6), "much…");
    }
}
