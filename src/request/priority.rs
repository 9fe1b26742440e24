use std::{fmt, str::FromStr};

/// How urgent a request is, should it have to wait for a key. Who need not wait is served at once, whatever its class.
///
/// Of two that wait, the one of the higher class goes first, unless the other came 10 s earlier, or 20 s for two classes
/// apart: so nobody starves, and with waits of at most 10 s the order is strict.
///
/// ```
/// use tower_openrouter::request::Priority;
/// assert_eq!("low".parse(), Ok(Priority::Low));
/// assert!("urgent".parse::<Priority>().is_err());
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// Somebody looks at the screen.
    High,
    /// What says nothing.
    #[default]
    Normal,
    /// Nobody waits for it: batches, evaluations.
    Low,
}

impl Priority {
    /// All, the highest first.
    pub const ALL: [Self; 3] = [Self::High, Self::Normal, Self::Low];

    /// Its name, as in the header `x-priority` of the gateway and in its figures.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::High => "high",
            Self::Normal => "normal",
            Self::Low => "low",
        }
    }
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Priority {
    type Err = PriorityError;

    /// Reads a name, in any case.
    fn from_str(name: &str) -> Result<Self, PriorityError> {
        Self::ALL.into_iter().find(|class| name.eq_ignore_ascii_case(class.as_str())).ok_or(PriorityError)
    }
}

/// The name is not one of a class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the priority is not known: it must be high, normal or low")]
pub struct PriorityError;
