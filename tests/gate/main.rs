//! The gate under attack and at work: raw bytes over loopback to a service in a process of its own.
//!
//! Run it with names (or parts of them) to choose tests. They run one after the other, for each measures the honest client
//! beside the attack. With `stand` as its only argument this program is the service itself.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "it reports what it has measured"
)]

mod attacks;
mod behaviour;
mod client;
mod endless;
mod fairness;
mod floods;
mod malformed;
mod proxy;
mod service;
mod stand;

use std::panic::catch_unwind;
use std::process::ExitCode;
use std::time::Instant;

type Test = (&'static str, fn());

/// Names a function as a test.
macro_rules! tests {
    ($($test:ident),* $(,)?) => {
        /// The tests of this file.
        pub(crate) const TESTS: &[crate::Test] = &[$((stringify!($test), $test)),*];
    };
}
pub(crate) use tests;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments == ["stand"] {
        return stand::run();
    }
    let chosen: Vec<&String> = arguments.iter().filter(|a| !a.starts_with('-')).collect();
    let all = [
        malformed::TESTS,
        behaviour::TESTS,
        fairness::TESTS,
        attacks::TESTS,
        endless::TESTS,
        floods::TESTS,
    ];
    // what needs more than the toolchain must be asked for
    let more = chosen.iter().any(|name| name.contains("nginx"));
    let more = if more { proxy::TESTS } else { &[] };
    let (mut passed, mut failed) = (0, Vec::new());
    for (name, test) in all.into_iter().flatten().chain(more) {
        if !chosen.is_empty() && !chosen.iter().any(|part| name.contains(part.as_str())) {
            continue;
        }
        let begin = Instant::now();
        let succeeded = catch_unwind(test).is_ok();
        let (outcome, time) = (if succeeded { "ok" } else { "FAILED" }, begin.elapsed());
        println!("test {name} ... {outcome} ({:.1} s)", time.as_secs_f32());
        if succeeded {
            passed += 1;
        } else {
            failed.push(name);
        }
    }
    let (outcome, count) = (
        if failed.is_empty() { "ok" } else { "FAILED" },
        failed.len(),
    );
    println!("\ntest result: {outcome}. {passed} passed; {count} failed");
    if failed.is_empty() {
        return ExitCode::SUCCESS;
    }
    println!("failed: {failed:?}");
    ExitCode::from(101)
}
