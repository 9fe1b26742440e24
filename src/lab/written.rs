//! Numbers as people read them: three digits, and a dash where there is none.

/// What stands where there is no value.
pub(super) fn sign() -> String {
    "–".to_owned()
}

/// Three digits or so, without a unit.
pub(super) fn short(value: Option<f64>) -> String {
    let Some(value) = value else { return sign() };
    match value.abs() {
        size if size >= 99.95 => format!("{value:.0}"),
        size if size >= 9.995 => format!("{value:.1}"),
        size if size >= 0.005 || size == 0.0 => format!("{value:.2}"),
        _ => "~0".to_owned(),
    }
}

/// A part of one in percent. What is not all is not written as all, nor what is something as nothing.
pub(super) fn part(value: Option<f64>) -> String {
    let Some(value) = value else { return sign() };
    let percent = value * 100.0;
    if percent > 0.0 && percent < 0.05 {
        "<0.1%".to_owned()
    } else if (99.95..100.0).contains(&percent) {
        ">99.9%".to_owned()
    } else if percent >= 100.0 {
        format!("{percent:.0}%")
    } else {
        format!("{percent:.1}%")
    }
}

/// At most so many characters, the last an ellipsis where some are left out.
pub(super) fn shortened(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_say_no_more_than_is_so() {
        let shorts = [(0.0, "0.00"), (1e-5, "~0"), (0.128, "0.13"), (9.999, "10.0"), (12.34, "12.3"), (123.4, "123")];
        for (value, expected) in shorts {
            assert_eq!(short(Some(value)), expected, "{value}");
        }
        let parts =
            [(0.0, "0.0%"), (1e-5, "<0.1%"), (0.5, "50.0%"), (0.99999, ">99.9%"), (1.0, "100%"), (1.02, "102%")];
        for (value, expected) in parts {
            assert_eq!(part(Some(value)), expected, "{value}");
        }
        assert_eq!((short(None), part(None)), ("–".into(), "–".into()));
        assert_eq!((shortened("round-robin", 6), shortened("oracle", 6)), ("round…".into(), "oracle".into()));
    }
}
