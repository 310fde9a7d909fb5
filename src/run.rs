// SPDX-License-Identifier: MIT OR Apache-2.0
//! A run of the reader's thread, and the `Events` that keep it going.

use crate::event::CollectorEvent;
use crate::shared::Shared;
use crossbeam_channel::{Iter, Receiver};
use std::ops::Deref;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

/// The reader's thread. It ends when the last reference to the run is dropped, or by [`end`](Self::end).
#[derive(Debug)]
pub(crate) struct Run {
    thread: Mutex<Option<JoinHandle<()>>>,
    shared: Arc<Shared>,
}

impl Run {
    pub(crate) fn new(thread: JoinHandle<()>, shared: Arc<Shared>) -> Self {
        Self { thread: Mutex::new(Some(thread)), shared }
    }

    /// Does tracing go on, in this process?
    pub(crate) fn is_going_on(&self) -> bool {
        self.shared.is_ours() && !self.shared.stopping() && !self.shared.ended.load(Ordering::Acquire)
    }

    /// Ends the thread and waits for it. A forked child has no such thread, and returns at once.
    pub(crate) fn end(&self) {
        if !self.shared.is_ours() {
            return;
        }
        self.shared.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        // The user's function runs on that thread, and cannot wait for itself. The thread ends after the function.
        let Some(thread) = thread.filter(|reader| reader.thread().id() != thread::current().id()) else {
            return;
        };
        // If the user's function has panicked, the panic hook has reported it, and there is nothing left to stop.
        if thread.join().is_err() {
            log::error!("the reader thread has panicked");
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        self.end();
        if !self.shared.is_ours() {
            // The thread of this handle does not exist in a forked child.
            std::mem::forget(self.thread.get_mut().unwrap_or_else(PoisonError::into_inner).take());
        }
    }
}

/// The receiving end of a collector that [`spawn`](crate::LinuxCollectorBuilder::spawn) has started.
///
/// It has the methods of a [`Receiver`]. As an iterator it waits for each event, and ends when the collector has ended.
///
/// It keeps the tracing going. Tracing ends with [`stop`](crate::LinuxCollector::stop), or when the collector and all
/// clones of its `Events` are dropped. If you drop the `Events` alone, the collector ends by itself at its next event.
#[derive(Clone, Debug)]
#[must_use]
pub struct Events {
    /// Dropped first: then the reader does not wait for room in the channel while `_run` waits for the reader.
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
