//! Sweeps: one stack with many values of its settings.
//!
//! "How many failures should open a breaker?" is answered by trying all numbers one could mean. A [`Sweep`] names a setting of
//! a [`Composed`] stack and its values, as `breaker.failures=1..10` does; [`product`] makes a stack of each, and of each
//! combination where several settings are swept.

use std::{fmt, str::FromStr};

use super::{
    Stack,
    stacks::{Composed, composed::ComposedError},
};

/// More stacks than this are a slip of the pen: each is run in each scenario, with each seed.
const MOST: usize = 1000;

/// A setting, and the values it is to have in turn.
///
/// Values stand between commas: as TOML, or as text where that is not TOML; `1..10` is all whole numbers from 1 to 10.
///
/// ```
/// use tower_openrouter::lab::Sweep;
///
/// let sweep: Sweep = "breaker.failures=1..3,5".parse()?;
/// assert_eq!((sweep.setting(), sweep.values()), ("breaker.failures", &["1", "2", "3", "5"].map(String::from)[..]));
/// let sweep: Sweep = "select.pick = round-robin, peak-ewma".parse()?;
/// assert_eq!(sweep.values(), ["round-robin", "peak-ewma"]);
/// # Ok::<(), tower_openrouter::lab::SweepError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sweep {
    setting: String,
    values: Vec<String>,
}

/// Why there is nothing to sweep.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SweepError {
    /// It is no setting and values.
    #[error(
        "{0:?} is no sweep: write a setting and its values, such as breaker.failures=1..10 or pace.learn=true,false"
    )]
    Form(String),
    /// A range of what is no whole number, or from more to less.
    #[error("{setting}: {range:?} is no range: write two whole numbers, the smaller first, such as 1..10")]
    Range {
        /// The path of the setting.
        setting: String,
        /// What was given.
        range: String,
    },
    /// A value is there twice.
    #[error("{setting}: {value} is there twice")]
    Twice {
        /// The path of the setting.
        setting: String,
        /// The value.
        value: String,
    },
    /// Two sweeps over one setting.
    #[error("{0} is swept twice: give all of its values at once")]
    SameSetting(String),
    /// Too many stacks.
    #[error("this makes more than {MOST} stacks: sweep over fewer values, or one setting after the other")]
    TooMany,
    /// A stack refuses the setting or a value.
    #[error(transparent)]
    Stack(#[from] ComposedError),
}

impl Sweep {
    /// The path of the setting, as in `breaker.failures`.
    pub fn setting(&self) -> &str {
        &self.setting
    }

    /// Its values, as they were written.
    pub fn values(&self) -> &[String] {
        &self.values
    }
}

impl FromStr for Sweep {
    type Err = SweepError;

    fn from_str(text: &str) -> Result<Self, SweepError> {
        let form = || SweepError::Form(text.to_owned());
        let (setting, values) = text.split_once('=').ok_or_else(form)?;
        let setting = setting.trim();
        let is_name =
            |name: &str| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        if !setting.split('.').all(is_name) {
            return Err(form());
        }
        let mut sweep = Self { setting: setting.to_owned(), values: Vec::new() };
        for value in items(values) {
            match value.split_once("..") {
                _ if value.is_empty() => return Err(form()),
                Some((from, to)) if !value.starts_with(['"', '\'', '[', '{']) => sweep.add_range(value, from, to)?,
                _ => sweep.add(value.to_owned())?,
            }
        }
        Ok(sweep)
    }
}

impl Sweep {
    fn add(&mut self, value: String) -> Result<(), SweepError> {
        if self.values.contains(&value) {
            return Err(SweepError::Twice { setting: self.setting.clone(), value });
        }
        if self.values.len() == MOST {
            return Err(SweepError::TooMany);
        }
        self.values.push(value);
        Ok(())
    }

    fn add_range(&mut self, range: &str, from: &str, to: &str) -> Result<(), SweepError> {
        match (from.trim().parse::<i64>(), to.trim().parse::<i64>()) {
            (Ok(from), Ok(to)) if from <= to => (from..=to).try_for_each(|number| self.add(number.to_string())),
            _ => Err(SweepError::Range { setting: self.setting.clone(), range: range.to_owned() }),
        }
    }
}

impl fmt::Display for Sweep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.setting, self.values.join(","))
    }
}

/// What stands between the commas that are in no list and no quotes.
fn items(text: &str) -> Vec<&str> {
    let (mut items, mut start, mut depth, mut quote) = (Vec::new(), 0, 0_u32, None);
    for (at, letter) in text.char_indices() {
        match (quote, letter) {
            (Some(end), _) if letter == end => quote = None,
            (Some(_), _) => {}
            (None, '"' | '\'') => quote = Some(letter),
            (None, '[' | '{') => depth += 1,
            (None, ']' | '}') => depth = depth.saturating_sub(1),
            (None, ',') if depth == 0 => {
                items.push(text[start..at].trim());
                start = at + 1;
            }
            _ => {}
        }
    }
    items.push(text[start..].trim());
    items
}

/// One stack of a sweep.
#[derive(Debug, Clone)]
pub struct Swept {
    /// The value of each setting that is swept, in the order of the sweeps.
    pub values: Vec<String>,
    /// The stack, named for them.
    pub stack: Composed,
}

/// The stacks of all combinations of the sweeps' values; the last setting changes fastest. Without sweeps, the stack itself.
///
/// ```
/// use tower_openrouter::lab::{Stack, Sweep, stacks::Composed, sweep};
///
/// let sweeps: [Sweep; 2] = ["breaker.failures=1..3".parse()?, "pace.learn=true,false".parse()?];
/// let stacks = sweep::product(&Composed::from_toml("default", "")?, &sweeps)?;
/// assert_eq!(stacks.len(), 6);
/// assert_eq!(stacks[1].values, ["1", "false"]);
/// assert_eq!(stacks[1].stack.name(), "failures=1 learn=false");
/// # Ok::<(), tower_openrouter::lab::SweepError>(())
/// ```
///
/// # Errors
/// When a setting is swept twice, the stack refuses one or a value, or there are more than a thousand.
pub fn product(base: &Composed, sweeps: &[Sweep]) -> Result<Vec<Swept>, SweepError> {
    for (at, sweep) in sweeps.iter().enumerate() {
        if sweeps[..at].iter().any(|other| other.setting == sweep.setting) {
            return Err(SweepError::SameSetting(sweep.setting.clone()));
        }
    }
    let count = sweeps.iter().try_fold(1_usize, |count, sweep| count.checked_mul(sweep.values.len()));
    if count.is_none_or(|count| count > MOST) {
        return Err(SweepError::TooMany);
    }
    (0..count.unwrap_or_default()).map(|number| nth(base, sweeps, number)).collect()
}

/// The combination with this number, whose last digit is the last sweep's.
fn nth(base: &Composed, sweeps: &[Sweep], mut number: usize) -> Result<Swept, SweepError> {
    let mut values = Vec::with_capacity(sweeps.len());
    for sweep in sweeps.iter().rev() {
        values.push(sweep.values[number % sweep.values.len()].clone());
        number /= sweep.values.len();
    }
    values.reverse();
    let changes: Vec<_> = sweeps.iter().zip(&values).map(|(sweep, value)| (&*sweep.setting, &**value)).collect();
    let said: Vec<_> = changes.iter().map(|(setting, value)| format!("{}={value}", short(setting, sweeps))).collect();
    let name = if said.is_empty() { base.name().to_owned() } else { said.join(" ") };
    Ok(Swept { stack: base.set_all(&changes)?.named(name), values })
}

/// What a setting is called within its section, unless another that is swept is called the same: tables are narrow.
fn short<'a>(setting: &'a str, sweeps: &[Sweep]) -> &'a str {
    let last = |path: &'a str| path.rsplit('.').next().unwrap_or(path);
    let same = sweeps.iter().filter(|sweep| sweep.setting.rsplit('.').next() == Some(last(setting)));
    if same.count() > 1 { setting } else { last(setting) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn values(text: &str) -> Vec<String> {
        text.parse::<Sweep>().unwrap_or_else(|error| panic!("{text}: {error}")).values
    }

    #[test]
    fn values_are_lists_and_ranges_of_what_may_stand_in_a_file() {
        for (text, expected) in [
            ("a.b=1..4", &["1", "2", "3", "4"][..]),
            ("a.b=-1..1, 7", &["-1", "0", "1", "7"]),
            ("a.b=30s,2m", &["30s", "2m"]),
            ("a=0.1,0.25", &["0.1", "0.25"]),
            ("a.b=[\"x/y\",\"z\"],[]", &["[\"x/y\",\"z\"]", "[]"]),
            ("a.b={ c = 1, d = 2 },3", &["{ c = 1, d = 2 }", "3"]),
            ("a.b=\"1..2, 3\",'x,'", &["\"1..2, 3\"", "'x,'"]),
        ] {
            assert_eq!(values(text), expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_sweep_is_refused_by_what_is_wrong() {
        for (text, told) in [
            ("", "\"\" is no sweep: write a setting and its values"),
            ("breaker.failures", "\"breaker.failures\" is no sweep"),
            ("=1", "\"=1\" is no sweep"),
            ("breaker.=1", "\"breaker.=1\" is no sweep"),
            ("two words=1", "\"two words=1\" is no sweep"),
            ("a.b=", "\"a.b=\" is no sweep"),
            ("a.b=1,,2", "\"a.b=1,,2\" is no sweep"),
            ("a.b=3..1", "a.b: \"3..1\" is no range: write two whole numbers, the smaller first"),
            ("a.b=1s..3s", "a.b: \"1s..3s\" is no range"),
            ("a.b=1..", "a.b: \"1..\" is no range"),
            ("a.b=1..3,2", "a.b: 2 is there twice"),
            ("a.b=0..9223372036854775807", "this makes more than 1000 stacks"),
        ] {
            let error = text.parse::<Sweep>().unwrap_err().to_string();
            assert!(error.starts_with(told), "{text}: {error}");
        }
    }

    fn swept(sweeps: &[&str]) -> Result<Vec<Swept>, SweepError> {
        let sweeps = sweeps.iter().map(|text| text.parse()).collect::<Result<Vec<_>, _>>()?;
        product(&Composed::from_toml("base", "").unwrap(), &sweeps)
    }

    #[test]
    fn all_combinations_are_made_the_last_setting_changing_fastest() {
        let stacks = swept(&["breaker.failures=2,4", "pace.learn=true,false", "retry.attempts=5"]).unwrap();
        let made: Vec<_> = stacks
            .iter()
            .map(|Swept { stack, .. }| (stack.settings().breaker.failures.get(), stack.settings().pace.learn))
            .collect();
        assert_eq!(made, [(2, true), (2, false), (4, true), (4, false)]);
        assert!(stacks.iter().all(|swept| swept.stack.settings().retry.attempts == 5));
        assert_eq!(stacks[3].values, ["4", "false", "5"]);
        assert_eq!(stacks[3].stack.name(), "failures=4 learn=false attempts=5");
        let (fast, soon) = ("provider.preferred_min_throughput.p90", "provider.preferred_max_latency.p90");
        let alike = swept(&[&format!("{fast}=20"), &format!("{soon}=3")]).unwrap();
        assert_eq!(
            alike[0].stack.name(),
            format!("{fast}=20 {soon}=3"),
            "they are called the same within their sections"
        );
        let alone = swept(&[]).unwrap();
        assert_eq!((alone.len(), alone[0].stack.name()), (1, "base"));
    }

    #[test]
    fn settings_may_need_each_other() {
        // neither is valid without the other
        let stacks = swept(&["retry.min_backoff=1m", "retry.max_backoff=2m,3m"]).unwrap();
        assert_eq!(stacks.len(), 2);
    }

    #[test]
    fn what_the_stack_refuses_and_what_is_too_much_is_told() {
        for (sweeps, told) in [
            (&["breaker.failures=0..3"][..], "breaker.failures = 0: "),
            (&["breaker.failurez=1..3"], "breaker.failurez = 1: unknown field `failurez`, expected one of `failures`"),
            (&["braker.failures=1"], "braker.failures = 1: unknown field `braker`, expected one of `deadline`"),
            (&["deadline.s=1"], "deadline.s = 1: invalid type: map, expected a string"),
            (&["retry.attempts=1..2", "retry.attempts=3"], "retry.attempts is swept twice"),
            (
                &["breaker.failures=1..40", "retry.attempts=1..5", "select.sticky_floor=1..10"],
                "this makes more than 1000",
            ),
        ] {
            let error = swept(sweeps).unwrap_err().to_string();
            assert!(error.starts_with(told), "{sweeps:?}: {error}");
        }
    }

    proptest! {
        #[test]
        fn r119_any_text_is_a_sweep_or_an_error(
            text in r#"[a-c. =]{0,6}(=|)([0-9.,"'\[\]{} a-]|\PC){0,24}"#,
        ) {
            match text.parse::<Sweep>() {
                Ok(sweep) => prop_assert_eq!(sweep.to_string().parse::<Sweep>(), Ok(sweep)),
                Err(error) => prop_assert!(!error.to_string().is_empty()),
            }
        }
    }
}
