use super::{replay::Replay, scan::Scan};
use crate::body::Guarded;

/// The body of an answer: the transport's, byte for byte, watched for its outcome as it flows.
pub type OpenRouterBody<B> = Guarded<Replay<B>, Scan>;
