//! The gateway as a process: what its clients, its upstream and its operator see.

mod api;
mod explain;
mod process;
mod secrets;
mod support;
