//! The gateway as a process: what its clients, its upstream and its operator see.

mod api;
mod check;
mod cut;
mod explain;
mod keep_alive;
mod leaving;
mod page;
mod polls;
mod process;
#[cfg(unix)]
mod record;
mod reload;
mod secrets;
mod support;
