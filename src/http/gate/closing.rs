//! Deadlines, and the end of the service.

use super::admission::ACCEPTED_AT_ONCE;
use super::connection::Stage;
use super::limits::{BACKLOG, GRACE_TIME, LAST_IDLE_TIME, LAST_READ_TIME};
use super::{Gate, SWEEP};
use crate::http::head::Refusal;
use crate::notify::State;
use std::io::Read;

impl Gate {
    /// Ends what is late, when something is.
    pub(super) fn sweep(&mut self) {
        if self.sweep_at.is_none_or(|at| self.now < at) {
            return;
        }
        let mut late = Vec::new();
        self.sweep_at = None;
        for (slot, connection) in &self.connections {
            if connection.deadline <= self.now {
                late.push(slot);
            } else if self.sweep_at.is_none_or(|at| connection.deadline < at) {
                self.sweep_at = Some(connection.deadline);
            }
        }
        self.sweep_at = self.sweep_at.map(|at| at.max(self.now + SWEEP));
        for slot in late {
            match self
                .connections
                .get(slot)
                .map(|connection| &connection.stage)
            {
                Some(Stage::Head | Stage::Body(_) | Stage::ChunkedBody(_)) => {
                    self.refuse(slot, Refusal::TooSlow);
                }
                Some(Stage::Queued) => self.refuse(slot, Refusal::Busy),
                // the worker keeps its place until it answers, and that answer is thrown away
                Some(Stage::Working) => self.refuse(slot, Refusal::Late),
                _ => self.close(slot),
            }
        }
    }

    /// SIGTERM or SIGINT, unless the pipe was only tried.
    pub(super) fn hear_signal(&mut self) {
        if self.stopping.is_none() && self.signal.read(&mut [0; 8]).is_ok() {
            self.stop();
        }
    }

    /// No new clients; who has come is served.
    fn stop(&mut self) {
        log::info!("stopping: {} connections are open", self.connections.len());
        self.supervisor.tell(State::Stopping);
        // whom the kernel has completed a connection with believes to be connected
        for door in &mut self.doors {
            door.ready = true;
        }
        self.accept_paused = None;
        for _ in 0..BACKLOG as usize / ACCEPTED_AT_ONCE + 1 {
            self.accept();
        }
        self.doors.clear();
        self.stopping = Some(self.now);
        let slots: Vec<usize> = self.connections.iter().map(|(slot, _)| slot).collect();
        for slot in slots {
            self.hurry(slot);
        }
    }

    /// Shortens what a client may still take. It may have sent a request at this very moment, which is answered then, with
    /// `Connection: close`.
    fn hurry(&mut self, slot: usize) {
        self.connections[slot].readable = true;
        self.read(slot);
        let Some(connection) = self.connections.get(slot) else {
            return;
        };
        let time = match connection.stage {
            Stage::Idle => LAST_IDLE_TIME,
            Stage::Head | Stage::Body(_) | Stage::ChunkedBody(_) => LAST_READ_TIME,
            _ => return,
        };
        let deadline = connection.deadline.min(self.now + time);
        self.give_until(slot, deadline);
    }

    /// Whether the service has ended, and whether everything was finished then.
    pub(super) fn over(&mut self) -> Option<bool> {
        let since = self.stopping?;
        let finished = self.connections.is_empty() && self.free.len() == self.places.len();
        if finished {
            return Some(true);
        }
        if self.now < since + GRACE_TIME {
            return None;
        }
        let slots: Vec<usize> = self.connections.iter().map(|(slot, _)| slot).collect();
        for slot in slots {
            match self
                .connections
                .get(slot)
                .map(|connection| &connection.stage)
            {
                Some(Stage::Queued | Stage::Working) => self.refuse(slot, Refusal::Busy),
                _ => self.close(slot),
            }
        }
        Some(false)
    }
}
