/// What is wrong with a key, or a set of keys. It never holds any of the secret.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// The secret is empty.
    #[error("the key is empty: give its secret, or leave it out")]
    EmptySecret,
    /// The secret holds a character that cannot be sent.
    #[error("the key holds {what} at position {position}: copy it again without it")]
    BadCharacter {
        /// Which character of the secret, counting bytes from 1.
        position: usize,
        /// What kind of character.
        what: &'static str,
    },
    /// The weight is not usable.
    #[error("the key's weight is {0}: it must be a number of 0 or more")]
    BadWeight(f64),
    /// The cap is 0.
    #[error("the key's max_in_flight is 0: it must be at least 1; use weight 0 to send it nothing")]
    ZeroCap,
    /// The base URL is not usable.
    #[error("the base URL cannot be used: {what}")]
    BadBaseUrl {
        /// What is wrong with it.
        what: &'static str,
    },
    /// A model pattern is not usable.
    #[error("the model pattern {0:?} is empty, negated or holds white space: write one such as \"anthropic/*\"")]
    BadPattern(Box<str>),
    /// There is no key at all.
    #[error("no key is given: a pool needs at least one")]
    NoKeys,
}
