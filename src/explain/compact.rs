//! The compact form: one line of bounded length, fit for a header.

use std::fmt::{self, Display, Write};

use http::HeaderValue;

use super::record::{Attempt, Explanation, Found, Look, Next};
use crate::outcome::Outcome;

/// The longest it gets.
const LONGEST: usize = 1024;
/// What is kept free for the count of what found no room.
const ROOM_FOR_COUNT: usize = 24;
/// The longest a label gets, the mark that it was cut not counted.
const LONGEST_LABEL: usize = 40;
/// The most reasons told of one attempt.
const MOST_REASONS: usize = 4;

pub(super) fn header(told: &Explanation) -> HeaderValue {
    let mut text = String::new();
    let mut shown = 0;
    for attempt in &told.attempts {
        let separator = if shown == 0 { "" } else { ";" };
        let one = format!("{separator}{}:{}", shown + 1, One(attempt));
        if text.len() + one.len() > LONGEST - ROOM_FOR_COUNT {
            break;
        }
        text.push_str(&one);
        shown += 1;
    }
    let others = told.attempts.len() - shown + told.left_out;
    if others > 0 {
        // writing to a string does not fail
        let _ = write!(text, ";+{others}");
    }
    // what is not visible ASCII was encoded above
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static(""))
}

struct One<'a>(&'a Attempt);

impl Display for One<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(attempt) = self;
        match &attempt.key {
            Some(label) => write!(f, "{}=", Encoded(label))?,
            None => f.write_str("-=")?,
        }
        match (&attempt.outcome, attempt.rejected, attempt.status) {
            (Some(Outcome::Success), ..) => f.write_str("ok")?,
            (Some(Outcome::Fault(fault)), ..) => {
                write!(f, "{}", fault.cause)?;
                if let Some(rest) = fault.rest {
                    write!(f, "({})", Seconds(super::millis(rest.duration)))?;
                }
            }
            (None, Some(why), _) => f.write_str(why.as_str())?,
            (None, None, Some(status)) => write!(f, "{status}")?,
            (None, None, None) => f.write_str("open")?,
        }
        if attempt.waited_ms > 0 {
            write!(f, " wait={}", Seconds(attempt.waited_ms))?;
        }
        if let Some(look) = attempt.looks.last().filter(|look| !look.refused.is_empty()) {
            write!(f, " out={}", Out(look))?;
        }
        // that an answer begins with output is nothing to tell
        if let Some(gate) = attempt.gate.filter(|gate| gate.found != Found::Output) {
            write!(f, " gate={}({})", gate.found.as_str(), Seconds(gate.held_ms))?;
        }
        match &attempt.next {
            Some(next) => write!(f, " next={}", Then(next)),
            None => Ok(()),
        }
    }
}

/// Who was out, by reason.
pub(super) struct Out<'a>(pub(super) &'a Look);

impl Display for Out<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, group) in self.0.refused.iter().take(MOST_REASONS).enumerate() {
            let separator = if index == 0 { "" } else { "," };
            let reason = group.reason.to_string();
            // a filter's name may be anything
            match reason.split_once(':') {
                Some((reason, of)) => write!(f, "{separator}{reason}:{}*{}", Encoded(of), group.keys.count)?,
                None => write!(f, "{separator}{reason}*{}", group.keys.count)?,
            }
        }
        match self.0.refused.len().saturating_sub(MOST_REASONS) {
            0 => Ok(()),
            others => write!(f, ",+{others}"),
        }
    }
}

pub(super) struct Then<'a>(pub(super) &'a Next);

impl Display for Then<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Next::Failover => f.write_str("failover"),
            Next::Retry { wait_ms } => write!(f, "retry({})", Seconds(*wait_ms)),
            Next::OtherModel => f.write_str("other_model"),
            Next::GiveUp { why } => write!(f, "give_up:{why}"),
        }
    }
}

/// Milliseconds as seconds: `0.2s`, `30s`.
struct Seconds(u64);

impl Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, millis) = (self.0 / 1000, self.0 % 1000);
        match millis {
            0 => write!(f, "{seconds}s"),
            _ => write!(f, "{seconds}.{}s", format_args!("{millis:03}").to_string().trim_end_matches('0')),
        }
    }
}

/// A label with everything percent-encoded that could be mistaken for part of the form.
struct Encoded<'a>(&'a str);

impl Display for Encoded<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut length = 0;
        for byte in self.0.bytes() {
            let plain = byte.is_ascii_alphanumeric() || b"-_./@+".contains(&byte);
            length += if plain { 1 } else { 3 };
            if length > LONGEST_LABEL {
                return f.write_char('~');
            }
            match plain {
                true => f.write_char(char::from(byte))?,
                false => write!(f, "%{byte:02X}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;
    use tokio::time::Instant;

    use super::*;
    use crate::{
        error::Why,
        explain::record::{Gate, Reason},
        outcome::{Cause, Fault, Rest, Scope},
    };

    fn attempt(label: &str) -> Attempt {
        Attempt { key: Some(label.into()), ..Attempt::default() }
    }

    fn written(attempts: Vec<Attempt>) -> String {
        header(&Explanation { attempts, ..Explanation::default() }).to_str().unwrap().to_owned()
    }

    #[test]
    fn each_thing_known_has_its_place() {
        let fault = Fault::new(Cause::KeyLimit, Scope::Key).rest(Rest::hinted(Duration::from_millis(200)));
        let (mut look, now) = (Look::default(), Instant::now());
        look.refuse(Reason::Resting { cause: Cause::KeyLimit }, "a", Some(now), now);
        look.refuse(Reason::Filtered { filter: "my filter".into() }, "c", None, now);
        for (attempt, expected) in [
            (attempt("a"), "1:a=open"),
            (Attempt { status: Some(200), ..attempt("a") }, "1:a=200"),
            (Attempt { status: Some(200), outcome: Some(Outcome::Success), ..attempt("a") }, "1:a=ok"),
            (Attempt { status: Some(429), outcome: Some(fault.into()), ..attempt("a") }, "1:a=key_limit(0.2s)"),
            (
                Attempt { waited_ms: 30_050, next: Some(Next::Failover), ..attempt("a") },
                "1:a=open wait=30.05s next=failover",
            ),
            (Attempt { next: Some(Next::Retry { wait_ms: 2000 }), ..attempt("a") }, "1:a=open next=retry(2s)"),
            (Attempt { next: Some(Next::GiveUp { why: "budget" }), ..attempt("a") }, "1:a=open next=give_up:budget"),
            (
                Attempt { gate: Some(Gate { found: Found::Failure, held_ms: 250 }), ..attempt("a") },
                "1:a=open gate=failure(0.25s)",
            ),
            (Attempt { gate: Some(Gate { found: Found::Output, held_ms: 250 }), ..attempt("a") }, "1:a=open"),
            (Attempt { rejected: Some(Why::NoKey), ..Attempt::default() }, "1:-=no_key"),
            (Attempt { looks: vec![look], ..attempt("b") }, "1:b=open out=resting:key_limit*1,filtered:my%20filter*1"),
            (attempt("a;b=c é"), "1:a%3Bb%3Dc%20%C3%A9=open"),
        ] {
            assert_eq!(written(vec![attempt]), expected);
        }
        assert_eq!(written(vec![]), "");
        assert_eq!(written(vec![attempt("a"), attempt("b")]), "1:a=open;2:b=open");
    }

    proptest! {
        #[test]
        fn it_is_bounded_and_valid_for_any_labels(
            labels in prop::collection::vec(("\\PC{0,80}|.{0,80}", "\\PC{0,80}", any::<u64>(), any::<bool>()), 0..40),
            left_out in 0..usize::MAX / 2,
        ) {
            let attempts: Vec<_> = labels.iter().map(|(label, filter, number, rests)| {
                let mut look = Look::default();
                for turn in 0..6 {
                    let filter = format!("{turn}{filter}").into();
                    look.refuse(Reason::Filtered { filter }, label, None, Instant::now());
                }
                let fault = Fault::new(Cause::GuardrailBudget, Scope::Key);
                let rest = Rest::guessed(Duration::from_millis(*number));
                let fault = if *rests { fault.rest(rest) } else { fault };
                let next = Some(Next::Retry { wait_ms: *number });
                Attempt { waited_ms: *number, outcome: Some(fault.into()), looks: vec![look], next, ..attempt(label) }
            }).collect();
            let count = attempts.len();
            let text = header(&Explanation { attempts, left_out, ..Explanation::default() });
            prop_assert!(text.len() <= LONGEST, "{}", text.len());
            let text = text.to_str().expect("visible ASCII");
            prop_assert_eq!(text.is_empty(), count + left_out == 0);
            // labels cannot be mistaken for structure: as many attempts as are shown or counted
            let parts: Vec<_> = text.split(';').filter(|part| !part.is_empty()).collect();
            let (counted, shown): (Vec<&str>, Vec<&str>) = parts.into_iter().partition(|part| part.starts_with('+'));
            let counted: usize = counted.iter().map(|part| part[1..].parse::<usize>().unwrap()).sum();
            prop_assert_eq!(shown.len() + counted, count + left_out);
            for (index, part) in shown.iter().enumerate() {
                let (number, rest) = part.split_once(':').unwrap();
                prop_assert_eq!(number, (index + 1).to_string());
                prop_assert_eq!(rest.split(' ').next().unwrap().matches('=').count(), 1);
            }
        }
    }
}
