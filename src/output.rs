// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where events go: into a channel, to a function, or to the caller of a poller.

mod channel;

use crate::config::WhenFull;
use crate::event::CollectorEvent;
use channel::Channel;
use crossbeam_channel::Sender;
use std::fmt;

/// Takes the events of a collector: the [`Sender`] of a channel, or a function.
///
/// Give a handler to [`spawn_with`](crate::LinuxCollectorBuilder::spawn_with) or
/// [`start_with`](crate::LinuxCollector::start_with).
///
/// - **A sender** of [`CollectorEvent`]s sends the events one by one. [`WhenFull`] says what happens while the channel
///   is full. If all receivers are gone, the collector ends by itself at its next event.
/// - **A function** gets a slice of up to some 256 events. The collector calls it on the reader's thread, and reads
///   nothing meanwhile. The function may stop or drop the collector, and start it again. If it panics, the collector
///   ends. Write out the type of its argument, as in the example.
///
/// # Examples
/// ```no_run
/// use tcptop::{CollectorEvent, LinuxCollector};
///
/// let collector = LinuxCollector::builder().spawn_with(|events: &[CollectorEvent]| {
///     println!("{} events", events.len());
/// })?;
/// # Ok::<(), tcptop::Error>(())
/// ```
pub trait EventHandler: Send + 'static {
    /// Takes the next events, in the order in which the collector has read them.
    fn handle(&mut self, events: &[CollectorEvent]);

    /// How the collector delivers to this handler.
    #[doc(hidden)]
    fn into_output(self, _when_full: WhenFull) -> Output
    where
        Self: Sized,
    {
        Output(Kind::Function(Box::new(self)))
    }
}

impl<F: FnMut(&[CollectorEvent]) + Send + 'static> EventHandler for F {
    fn handle(&mut self, events: &[CollectorEvent]) {
        self(events);
    }
}

impl EventHandler for Sender<CollectorEvent> {
    /// Sends the events; waits for room for each. A collector does not call this, but acts by [`WhenFull`].
    fn handle(&mut self, events: &[CollectorEvent]) {
        // Without a receiver the events are dropped.
        events.iter().for_each(|event| drop(self.send(event.clone())));
    }

    fn into_output(self, when_full: WhenFull) -> Output {
        Output(Kind::Channel(Channel::new(self, when_full)))
    }
}

/// Where the reader delivers events.
#[doc(hidden)]
pub struct Output(Kind);

enum Kind {
    Channel(Channel),
    Function(Box<dyn EventHandler>),
    /// The caller of `Poller::poll` takes the events.
    Polled,
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Output").finish_non_exhaustive()
    }
}

impl Output {
    pub(crate) fn polled() -> Self {
        Self(Kind::Polled)
    }

    /// The channel, if events go into one.
    pub(crate) fn channel(&mut self) -> Option<&mut Channel> {
        match &mut self.0 {
            Kind::Channel(channel) => Some(channel),
            Kind::Function(_) | Kind::Polled => None,
        }
    }

    /// The user's function, if events go to one.
    pub(crate) fn function(&mut self) -> Option<&mut dyn EventHandler> {
        match &mut self.0 {
            Kind::Function(handler) => Some(handler.as_mut()),
            Kind::Channel(_) | Kind::Polled => None,
        }
    }
}

pub(crate) use channel::Tally;
