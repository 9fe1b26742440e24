use super::scan::Scan;
use crate::body::{Guarded, ReadAhead};

/// The body of an answer: the transport's, byte for byte, watched for its outcome as it flows.
pub type OpenRouterBody<B> = Guarded<ReadAhead<B>, Scan>;
