// SPDX-License-Identifier: MIT OR Apache-2.0
//! A run of the reader's thread, and who keeps it going.

use crate::event::CollectorEvent;
use crate::shared::Shared;
use crossbeam_channel::{Iter, Receiver};
use std::ops::Deref;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

/// The reader's thread. It ends with the last one who holds this, or when somebody ends it.
#[derive(Debug)]
pub(crate) struct Run {
    thread: Mutex<Option<JoinHandle<()>>>,
    shared: Arc<Shared>,
}

impl Run {
    pub(crate) fn new(thread: JoinHandle<()>, shared: Arc<Shared>) -> Self {
        Self { thread: Mutex::new(Some(thread)), shared }
    }

    /// Tracing goes on, and this is the process in which it does.
    pub(crate) fn is_going_on(&self) -> bool {
        self.shared.is_ours() && !self.shared.stopping() && !self.shared.ended.load(Ordering::Acquire)
    }

    /// Ends it and waits until it has ended. In a process that was forked from ours there is no such thread.
    pub(crate) fn end(&self) {
        if !self.shared.is_ours() {
            return;
        }
        self.shared.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        // The user's function runs on that thread: it cannot wait for itself. The thread ends after it.
        let Some(thread) = thread.filter(|reader| reader.thread().id() != thread::current().id()) else {
            return;
        };
        // Of a panic in the user's function the panic hook has told. There is nothing left to stop.
        if thread.join().is_err() {
            log::error!("the reader thread has panicked");
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        self.end();
        if !self.shared.is_ours() {
            // The handle of a thread that does not exist here.
            std::mem::forget(self.thread.get_mut().unwrap_or_else(PoisonError::into_inner).take());
        }
    }
}

/// Where the events of a collector arrive that [`spawn`](crate::LinuxCollectorBuilder::spawn) has started: a
/// [`Receiver`], whose methods it has, that keeps the tracing going. So tracing ends with
/// [`stop`](crate::LinuxCollector::stop), or when both the collector and this, with all its clones, are dropped. Who
/// drops only this gets no more events, and the collector ends by itself with the next one.
///
/// As an iterator it waits for each event, and ends when the collector has.
#[derive(Clone, Debug)]
#[must_use]
pub struct Events {
    /// Dropped first, so that nobody waits for room in the channel.
    receiver: Receiver<CollectorEvent>,
    _run: Option<Arc<Run>>,
}

impl Events {
    pub(crate) fn new(receiver: Receiver<CollectorEvent>, run: Option<Arc<Run>>) -> Self {
        Self { receiver, _run: run }
    }

    /// The channel's own receiver. A clone of it does not keep the tracing going.
    pub fn receiver(&self) -> &Receiver<CollectorEvent> {
        &self.receiver
    }
}

impl Deref for Events {
    type Target = Receiver<CollectorEvent>;

    fn deref(&self) -> &Self::Target {
        &self.receiver
    }
}

impl Iterator for Events {
    type Item = CollectorEvent;

    fn next(&mut self) -> Option<CollectorEvent> {
        self.receiver.recv().ok()
    }
}

impl<'a> IntoIterator for &'a Events {
    type Item = CollectorEvent;
    type IntoIter = Iter<'a, CollectorEvent>;

    fn into_iter(self) -> Self::IntoIter {
        self.receiver.iter()
    }
}
