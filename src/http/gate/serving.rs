//! Complete requests and the workers: two lanes, limits per address, places.

use super::admission::decrement;
use super::connection::{Stage, Ticket};
use super::limits::{QUEUE, QUEUE_TIME, outbound_workers};
use super::place::{Job, rewrite};
use super::stats::count;
use super::{Gate, PLACES};
use crate::http::head::Refusal;
use mio::Token;
use std::net::IpAddr;

impl Gate {
    /// A request is complete: it waits for a worker from now on, if there is room for it.
    pub(super) fn enqueue(&mut self, slot: usize) {
        let Some(connection) = self.connections.get_mut(slot) else {
            return;
        };
        let lane = usize::from(connection.call.outbound);
        let charged = connection.call.charged.take();
        if self.queues[lane].len() >= QUEUE {
            return self.refuse(slot, Refusal::Busy);
        }
        if let Some(address) = charged {
            let most = self.limits.requests_per_address;
            let most = most.unwrap_or(self.places.len() / 2).max(1);
            let active = self.active.entry(address).or_insert(0);
            if *active >= most {
                return self.refuse(slot, Refusal::TooMany);
            }
            *active += 1;
        }
        connection.call.charged = charged;
        connection.stage = Stage::Queued;
        self.serial += 1;
        connection.serial = self.serial;
        self.queues[lane].push_back(Ticket {
            slot,
            serial: self.serial,
        });
        self.dispatch();
        if matches!(self.connections.get(slot), Some(c) if matches!(c.stage, Stage::Queued)) {
            self.give_until(slot, self.now + QUEUE_TIME);
        }
    }

    /// Gives waiting requests to free places. What is local goes first; outbound work never takes the last eighth.
    pub(super) fn dispatch(&mut self) {
        let reserve = self.places.len() - outbound_workers(self.places.len());
        while let Some(&place) = self.free.last() {
            let outbound_may = self.outbound + reserve < self.places.len();
            let [local, outbound] = &mut self.queues;
            let next = match local.pop_front() {
                None if outbound_may => outbound.pop_front(),
                next => next,
            };
            let Some(ticket) = next else {
                return;
            };
            let Some(connection) = self.connections.get_mut(ticket.slot) else {
                continue;
            };
            let call = &mut connection.call;
            let job = Job {
                ticket,
                outbound: call.outbound,
                bodiless: call.bodiless,
                charged: call.charged.take(),
            };
            self.free.pop();
            self.outbound += usize::from(job.outbound);
            connection.stage = Stage::Working;
            self.places[place].begin(job, &mut connection.request);
            let sent = self.places[place].send(self.poll.registry(), Token(PLACES + place));
            self.keep_error(sent);
            self.give_until(ticket.slot, self.now + self.limits.work_time);
            self.weigh(ticket.slot);
        }
    }

    /// Something has happened at a worker's place: more of the request fits in, or the answer comes.
    pub(super) fn hear_worker(&mut self, index: usize) {
        let place = &mut self.places[index];
        let sent = place.send(self.poll.registry(), Token(PLACES + index));
        let outline = match sent.and_then(|()| place.receive(&mut self.scratch)) {
            Ok(Some(outline)) => outline,
            Ok(None) => return,
            Err(error) => return self.keep_error(Err(error)),
        };
        let Some((job, bytes)) = place.finish() else {
            return;
        };
        let mut out = std::mem::take(&mut self.out);
        let waiting = self
            .connections
            .get_mut(job.ticket.slot)
            .filter(|connection| {
                connection.serial == job.ticket.serial && matches!(connection.stage, Stage::Working)
            });
        let answered = waiting.map(|connection| {
            connection.call.keep_alive &= self.stopping.is_none();
            rewrite(
                &outline,
                bytes,
                connection.call.connection_field(),
                &mut out,
            );
        });
        self.free.push(index);
        self.outbound -= usize::from(job.outbound);
        self.discharge(job.charged);
        if answered.is_some() {
            count(&self.stats.served);
            self.answer(job.ticket.slot, &out);
        }
        out.clear();
        self.out = out;
        self.dispatch();
    }

    /// Takes a connection that will not be served out of its queue, and its charge with it.
    pub(super) fn leave_queue(&mut self, slot: usize) {
        let connection = &mut self.connections[slot];
        if matches!(connection.stage, Stage::Queued) {
            let lane = usize::from(connection.call.outbound);
            let charged = connection.call.charged.take();
            self.queues[lane].retain(|ticket| ticket.slot != slot);
            self.discharge(charged);
        }
    }

    fn discharge(&mut self, charged: Option<IpAddr>) {
        if let Some(address) = charged {
            decrement(&mut self.active, address);
        }
    }

    /// A broken place is the end of the service, at the end of this turn of the loop.
    fn keep_error(&mut self, outcome: std::io::Result<()>) {
        if let Err(error) = outcome {
            self.broken.get_or_insert(error);
        }
    }
}
