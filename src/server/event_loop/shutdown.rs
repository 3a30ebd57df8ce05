//! Deadlines, and the end of the service.

use super::admission::MAX_ACCEPTS_PER_TURN;
use super::connection::RequestStage;
use super::limits::{
    LISTEN_BACKLOG, SHUTDOWN_IDLE_TIMEOUT, SHUTDOWN_READ_TIMEOUT, SHUTDOWN_TIMEOUT,
};
use super::{EventLoop, MIN_SWEEP_INTERVAL};
use crate::server::head::RequestRefusal;
use crate::util::systemd::ServiceState;
use std::io::Read;

impl EventLoop {
    /// Ends what is late, when something is.
    pub(super) fn enforce_deadlines(&mut self) {
        if self.next_sweep.is_none_or(|at| self.now < at) {
            return;
        }
        let mut late = Vec::new();
        self.next_sweep = None;
        for (slot, connection) in &self.connections {
            if connection.deadline <= self.now {
                late.push(slot);
            } else if self.next_sweep.is_none_or(|at| connection.deadline < at) {
                self.next_sweep = Some(connection.deadline);
            }
        }
        self.next_sweep = self
            .next_sweep
            .map(|at| at.max(self.now + MIN_SWEEP_INTERVAL));
        for slot in late {
            match self
                .connections
                .get(slot)
                .map(|connection| &connection.stage)
            {
                Some(RequestStage::Head | RequestStage::Body(_) | RequestStage::ChunkedBody(_)) => {
                    self.refuse(slot, RequestRefusal::RequestTimeout);
                }
                Some(RequestStage::Queued) => self.refuse(slot, RequestRefusal::Busy),
                // the worker keeps its place until it answers, and that answer is thrown away
                Some(RequestStage::Processing) => self.refuse(slot, RequestRefusal::WorkerTimeout),
                _ => self.close(slot),
            }
        }
    }

    /// SIGTERM or SIGINT, unless the pipe was only tried.
    pub(super) fn on_signal(&mut self) {
        if self.stopping_since.is_none() && self.signal_pipe.read(&mut [0; 8]).is_ok() {
            self.begin_shutdown();
        }
    }

    /// No new clients; who has come is served.
    fn begin_shutdown(&mut self) {
        log::info!("stopping: {} connections are open", self.connections.len());
        self.supervisor.notify(ServiceState::Stopping);
        // whom the kernel has completed a connection with believes to be connected
        for door in &mut self.acceptors {
            door.ready = true;
        }
        self.accept_paused_until = None;
        for _ in 0..LISTEN_BACKLOG as usize / MAX_ACCEPTS_PER_TURN + 1 {
            self.accept();
        }
        self.acceptors.clear();
        self.stopping_since = Some(self.now);
        let slots: Vec<usize> = self.connections.iter().map(|(slot, _)| slot).collect();
        for slot in slots {
            self.shorten_deadline(slot);
        }
    }

    /// Shortens what a client may still take. It may have sent a request at this very moment, which is answered then, with
    /// `Connection: close`.
    fn shorten_deadline(&mut self, slot: usize) {
        self.connections[slot].readable = true;
        self.read(slot);
        let Some(connection) = self.connections.get(slot) else {
            return;
        };
        let time = match connection.stage {
            RequestStage::Idle => SHUTDOWN_IDLE_TIMEOUT,
            RequestStage::Head | RequestStage::Body(_) | RequestStage::ChunkedBody(_) => {
                SHUTDOWN_READ_TIMEOUT
            }
            _ => return,
        };
        let deadline = connection.deadline.min(self.now + time);
        self.set_deadline(slot, deadline);
    }

    /// Whether the service has ended, and whether everything was finished then.
    pub(super) fn check_shutdown(&mut self) -> Option<bool> {
        let since = self.stopping_since?;
        let finished =
            self.connections.is_empty() && self.idle_workers.len() == self.worker_connections.len();
        if finished {
            return Some(true);
        }
        if self.now < since + SHUTDOWN_TIMEOUT {
            return None;
        }
        let slots: Vec<usize> = self.connections.iter().map(|(slot, _)| slot).collect();
        for slot in slots {
            match self
                .connections
                .get(slot)
                .map(|connection| &connection.stage)
            {
                Some(RequestStage::Queued | RequestStage::Processing) => {
                    self.refuse(slot, RequestRefusal::Busy)
                }
                _ => self.close(slot),
            }
        }
        Some(false)
    }
}
