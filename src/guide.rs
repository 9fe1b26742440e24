//! The guide: how to use the layers, alone and together, and what they are up against.
//!
//! The pages of modules and types say what each thing is. These say what to do with them, in the order in which most people
//! ask. Every piece of code on them is compiled and, where nothing but a network is missing, run against the
//! [simulator](crate::simulator).
//!
//! | page | for |
//! | --- | --- |
//! | [start] | a first answer, a first look at what happened, and what trips people up on the first day |
//! | [stack] | the default balancer: its settings, which layers may change places, what fits in between |
//! | [architecture] | the picture: what a request passes, which folder that is, and how the parts know of each other |
//! | [layers] | each layer: what it solves, what it does by default, what else it can do, where people trip |
//! | [choosing] | which pick, breaker, pace and limit for which keys and which traffic, and how to find out |
//! | [own], [own::others] | a pick, a filter, a layer per key, a classification, a trip policy and a lab stack of your own |
//! | [gateway] | the gateway in operation: keys, reload, drain, the admin listener, records, batches |
//! | [limits] | what OpenRouter limits, for whom, and what more keys do about it |
//! | [migrating] | from the recipes people write in Python to these layers, line by line |
//!
//! Who is in a hurry reads [start] and [limits]: the first is how, the second is whether.
//!
//! This module has nothing but its pages, and exists in the documentation only.

#[doc = include_str!("guide/start.md")]
pub mod start {}

#[doc = include_str!("guide/stack.md")]
pub mod stack {}

/// Architecture: the picture of the stack, which folder each part is, and how the parts know of each other.
///
#[doc = include_str!("guide/architecture.svg")]
///
#[doc = include_str!("guide/architecture.md")]
pub mod architecture {}

#[doc = include_str!("guide/layers.md")]
pub mod layers {
    #[doc = include_str!("guide/layers/request.md")]
    pub mod request {}

    #[doc = include_str!("guide/layers/attempts.md")]
    pub mod attempts {}

    #[doc = include_str!("guide/layers/keys.md")]
    pub mod keys {}

    #[doc = include_str!("guide/layers/upstream.md")]
    pub mod upstream {}
}

#[doc = include_str!("guide/choosing.md")]
pub mod choosing {}

#[doc = include_str!("guide/own.md")]
pub mod own {
    #[doc = include_str!("guide/own/others.md")]
    pub mod others {}
}

#[doc = include_str!("guide/gateway.md")]
pub mod gateway {}

#[doc = include_str!("guide/limits.md")]
pub mod limits {}

#[doc = include_str!("guide/migrating.md")]
pub mod migrating {}
