//! Threads for connections. Each has its own runtime, and a connection stays on its thread.
//!
//! So nothing that a request needs moves between cores, and no scheduler steals work.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

/// The threads that serve connections.
#[derive(Clone)]
pub struct Workers(Arc<[Worker]>);

struct Worker {
    runtime: Handle,
    connections: AtomicUsize,
    /// Ends the thread when it is dropped.
    _stop: Option<oneshot::Sender<()>>,
}

/// Counts one connection of a worker until it is dropped.
struct Share {
    workers: Workers,
    index: usize,
}

impl Workers {
    /// The calling runtime, for servers with few requests.
    pub fn current() -> Self {
        Self([Worker { runtime: Handle::current(), connections: AtomicUsize::new(0), _stop: None }].into())
    }

    /// One thread for each core that this process may use.
    ///
    /// # Errors
    /// If a thread cannot be started.
    pub fn per_core() -> io::Result<Self> {
        let count = thread::available_parallelism().map_or(1, usize::from);
        (0..count).map(Worker::start).collect::<io::Result<_>>().map(Self)
    }

    /// Runs a connection on the worker with the fewest connections.
    pub fn spawn(&self, connection: impl Future<Output = ()> + Send + 'static) {
        let idlest = self.0.iter().enumerate().min_by_key(|(_, worker)| worker.connections.load(Ordering::Relaxed));
        let Some((index, worker)) = idlest else {
            return; // there is always one
        };
        worker.connections.fetch_add(1, Ordering::Relaxed);
        let share = Share { workers: self.clone(), index };
        worker.runtime.spawn(async move {
            connection.await;
            drop(share);
        });
    }
}

impl Worker {
    fn start(index: usize) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        thread::Builder::new().name(format!("worker-{index}")).spawn(move || runtime.block_on(stopped).ok())?;
        Ok(Self { runtime: handle, connections: AtomicUsize::new(0), _stop: Some(stop) })
    }
}

/// Runs also if the connection's task panics.
impl Drop for Share {
    fn drop(&mut self) {
        if let Some(worker) = self.workers.0.get(self.index) {
            worker.connections.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[test]
    fn each_connection_goes_where_there_are_fewest_and_a_panic_frees_its_place() {
        let workers = Workers([Worker::start(0).unwrap(), Worker::start(1).unwrap()].into());
        let (here, threads) = mpsc::channel();
        let mut ends = Vec::new();
        let connect = |ends: &mut Vec<_>| {
            let here = here.clone();
            let (end, ended) = oneshot::channel::<bool>();
            ends.push(Some(end));
            workers.spawn(async move {
                here.send(thread::current().name().unwrap().to_owned()).unwrap();
                assert!(ended.await.unwrap(), "on purpose");
            });
            threads.recv_timeout(Duration::from_secs(10)).unwrap()
        };
        let names = [connect(&mut ends), connect(&mut ends), connect(&mut ends)];
        assert_eq!(names, ["worker-0", "worker-1", "worker-0"]);
        for (index, is_orderly) in [(0, false), (2, true)] {
            ends[index].take().unwrap().send(is_orderly).unwrap();
        }
        while workers.0[0].connections.load(Ordering::Relaxed) > 0 {
            thread::yield_now();
        }
        assert_eq!(workers.0[1].connections.load(Ordering::Relaxed), 1);
    }
}
