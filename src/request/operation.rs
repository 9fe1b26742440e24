/// What a request wants done, by the names of OpenTelemetry's conventions for generative AI.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    Chat,
    TextCompletion,
    Embeddings,
    /// Look-ups of models, which run none.
    Models,
    Other,
}

impl Operation {
    #[cfg(any(test, feature = "metrics"))]
    pub(crate) const ALL: [Self; 5] = [Self::Chat, Self::TextCompletion, Self::Embeddings, Self::Models, Self::Other];

    /// By the path, wherever its root may be.
    pub(crate) fn of_path(path: &str) -> Self {
        // what nearly everyone asks for
        if path.ends_with("/chat/completions") {
            return Self::Chat;
        }
        for segment in path.rsplit('/') {
            match segment {
                "responses" | "messages" => return Self::Chat,
                "completions" => return Self::TextCompletion,
                "embeddings" => return Self::Embeddings,
                "models" => return Self::Models,
                _ => {}
            }
        }
        Self::Other
    }

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::TextCompletion => "text_completion",
            Self::Embeddings => "embeddings",
            Self::Models => "models",
            Self::Other => "other",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_says_what_is_wanted_below_any_root() {
        for (path, expected) in [
            ("/v1/chat/completions", Operation::Chat),
            ("/api/v1/messages", Operation::Chat),
            ("/responses", Operation::Chat),
            ("/v1/completions", Operation::TextCompletion),
            ("/v1/embeddings", Operation::Embeddings),
            ("/v1/models/acme/swift-1/endpoints", Operation::Models),
            ("/acme.Greeter/SayHello", Operation::Other),
            ("", Operation::Other),
        ] {
            assert_eq!(Operation::of_path(path), expected, "{path}");
        }
        for (index, operation) in Operation::ALL.into_iter().enumerate() {
            assert_eq!(operation as usize, index);
        }
    }
}
