//! Complete requests and the workers: two lanes, limits per address, places.

use super::admission::decrement_count;
use super::connection::{RequestKey, RequestStage};
use super::limits::{MAX_QUEUED_REQUESTS, QUEUE_TIMEOUT, max_outbound_workers};
use super::stats::increment;
use super::worker_connection::{WorkerJob, rewrite_response};
use super::{EventLoop, FIRST_WORKER_TOKEN};
use crate::server::head::RequestRefusal;
use mio::Token;
use std::net::IpAddr;

impl EventLoop {
    /// A request is complete: it waits for a worker from now on, if there is room for it.
    pub(super) fn enqueue(&mut self, slot: usize) {
        let Some(connection) = self.connections.get_mut(slot) else {
            return;
        };
        let lane = usize::from(connection.request_info.outbound);
        let charged = connection.request_info.charged_address.take();
        if self.queues[lane].len() >= MAX_QUEUED_REQUESTS {
            return self.refuse(slot, RequestRefusal::Busy);
        }
        if let Some(address) = charged {
            let most = self.limits.max_requests_per_address;
            let most = most.unwrap_or(self.worker_connections.len() / 2).max(1);
            let active = self.requests_per_address.entry(address).or_insert(0);
            if *active >= most {
                return self.refuse(slot, RequestRefusal::TooManyRequests);
            }
            *active += 1;
        }
        connection.request_info.charged_address = charged;
        connection.stage = RequestStage::Queued;
        self.last_request_id += 1;
        connection.request_id = self.last_request_id;
        self.queues[lane].push_back(RequestKey {
            slot,
            request_id: self.last_request_id,
        });
        self.dispatch();
        if matches!(self.connections.get(slot), Some(c) if matches!(c.stage, RequestStage::Queued))
        {
            self.set_deadline(slot, self.now + QUEUE_TIMEOUT);
        }
    }

    /// Gives waiting requests to free places. What is local goes first; outbound work never takes the last eighth.
    pub(super) fn dispatch(&mut self) {
        let reserve =
            self.worker_connections.len() - max_outbound_workers(self.worker_connections.len());
        while let Some(&place) = self.idle_workers.last() {
            let outbound_may = self.outbound_in_progress + reserve < self.worker_connections.len();
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
            let call = &mut connection.request_info;
            let job = WorkerJob {
                request_key: ticket,
                outbound: call.outbound,
                head_request: call.head_request,
                charged_address: call.charged_address.take(),
            };
            self.idle_workers.pop();
            self.outbound_in_progress += usize::from(job.outbound);
            connection.stage = RequestStage::Processing;
            self.worker_connections[place].assign(job, &mut connection.backend_request);
            let sent = self.worker_connections[place]
                .flush_request(self.poll.registry(), Token(FIRST_WORKER_TOKEN + place));
            self.record_backend_error(sent);
            self.set_deadline(ticket.slot, self.now + self.limits.work_timeout);
            self.account_memory(ticket.slot);
        }
    }

    /// Something has happened at a worker's place: more of the request fits in, or the answer comes.
    pub(super) fn on_worker_event(&mut self, index: usize) {
        let place = &mut self.worker_connections[index];
        let sent = place.flush_request(self.poll.registry(), Token(FIRST_WORKER_TOKEN + index));
        let outline = match sent.and_then(|()| place.receive_response(&mut self.read_buffer)) {
            Ok(Some(outline)) => outline,
            Ok(None) => return,
            Err(error) => return self.record_backend_error(Err(error)),
        };
        let Some((job, bytes)) = place.release() else {
            return;
        };
        let mut out = std::mem::take(&mut self.response_buffer);
        let waiting = self
            .connections
            .get_mut(job.request_key.slot)
            .filter(|connection| {
                connection.request_id == job.request_key.request_id
                    && matches!(connection.stage, RequestStage::Processing)
            });
        let answered = waiting.map(|connection| {
            connection.request_info.keep_alive &= self.stopping_since.is_none();
            rewrite_response(
                &outline,
                bytes,
                connection.request_info.connection_header(),
                &mut out,
            );
        });
        self.idle_workers.push(index);
        self.outbound_in_progress -= usize::from(job.outbound);
        self.release_address(job.charged_address);
        if answered.is_some() {
            increment(&self.stats.served_requests);
            self.send_response(job.request_key.slot, &out);
        }
        out.clear();
        self.response_buffer = out;
        self.dispatch();
    }

    /// Takes a connection that will not be served out of its queue, and its charge with it.
    pub(super) fn remove_from_queue(&mut self, slot: usize) {
        let connection = &mut self.connections[slot];
        if matches!(connection.stage, RequestStage::Queued) {
            let lane = usize::from(connection.request_info.outbound);
            let charged = connection.request_info.charged_address.take();
            self.queues[lane].retain(|ticket| ticket.slot != slot);
            self.release_address(charged);
        }
    }

    fn release_address(&mut self, charged: Option<IpAddr>) {
        if let Some(address) = charged {
            decrement_count(&mut self.requests_per_address, address);
        }
    }

    /// A broken place is the end of the service, at the end of this turn of the loop.
    fn record_backend_error(&mut self, outcome: std::io::Result<()>) {
        if let Err(error) = outcome {
            self.backend_error.get_or_insert(error);
        }
    }
}
