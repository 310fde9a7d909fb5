// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where events go: into a channel, to a function, or to the caller of a poller.

mod channel;

use crate::config::WhenFull;
use crate::event::CollectorEvent;
use channel::Channel;
use crossbeam_channel::Sender;
use std::fmt;

/// Takes the events of a collector that reads on its own thread.
///
/// Two kinds of values are handlers: the [`Sender`] of a channel of [`CollectorEvent`]s, and a function that takes a
/// slice of them. Give one to [`spawn_with`](crate::LinuxCollectorBuilder::spawn_with) or
/// [`start_with`](crate::LinuxCollector::start_with).
///
/// - **A sender** gets the events one by one. [`WhenFull`] says what happens while the channel is full. The collector
///   ends by itself when it has an event and all receivers are gone.
/// - **A function** gets some 256 events at a time, or as many as there are. The collector calls it on its own thread
///   and reads nothing meanwhile. The function may stop or drop the collector, and start it again. If it panics, the
///   collector ends. The type of its argument must be written out, as in the example.
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
    /// Takes the next events. They come in the order in which the collector has read them.
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
    /// Waits for room for each event. A collector does not call this: it knows what to do while there is none.
    fn handle(&mut self, events: &[CollectorEvent]) {
        // Without a receiver there is nobody to tell.
        events.iter().for_each(|event| drop(self.send(event.clone())));
    }

    fn into_output(self, when_full: WhenFull) -> Output {
        Output(Kind::Channel(Channel::new(self, when_full)))
    }
}

/// The way from the reader to a handler.
#[doc(hidden)]
pub struct Output(Kind);

enum Kind {
    Channel(Channel),
    Function(Box<dyn EventHandler>),
    /// The caller of each poll takes the events.
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
