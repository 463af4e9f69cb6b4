use std::sync::Arc;
use std::time::Instant;

use hyper::body::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::timeout_at;

use crate::args::Rate;
use crate::client::{Client, Failure};
use crate::error::Error;
use crate::pacer::{self, Arrival};
use crate::plan::Plan;
use crate::progress::Progress;
use crate::report::{Environment, RateReport, Report};
use crate::tally::{Flight, Tally};
use crate::target::Target;

/// Runs every rate of the plan.
pub(crate) async fn run(plan: &Plan) -> Result<Report, Error> {
    let environment = Environment::observe();
    let client = Arc::new(Client::new(Target::resolve(&plan.url).await?));
    let warmup_failures = warm_up(plan, &client).await;
    let mut rates = Vec::new();
    for &rate in &plan.rates {
        rates.push(Run::new(plan, &client, rate).run(rate).await?);
    }
    Ok(Report {
        environment,
        parameters: plan.parameters.clone(),
        warmup_failures,
        rates,
    })
}

/// Sends the warm-up requests one by one; returns how many failed.
async fn warm_up(plan: &Plan, client: &Client) -> u64 {
    let mut n_failed = 0;
    // Another seed than the measured texts', which a cache would know already otherwise.
    let bodies = plan.workload.bodies(plan.seed.wrapping_add(1));
    for (_, body) in (0..plan.num_warmups).zip(bodies) {
        let answer = tokio::time::timeout(plan.timeout, client.post(body)).await;
        n_failed += u64::from(!matches!(answer, Ok(Ok(_))));
    }
    n_failed
}

/// One rate under way.
struct Run<'a> {
    plan: &'a Plan,
    client: &'a Arc<Client>,
    /// A permit for each request that may be in flight.
    slots: Arc<Semaphore>,
    /// When the concurrency cap last let a request go that it had delayed.
    capped_until: Option<Instant>,
    flights: JoinSet<Flight>,
    tally: Tally,
    progress: Progress,
}

impl<'a> Run<'a> {
    fn new(plan: &'a Plan, client: &'a Arc<Client>, rate: Rate) -> Self {
        Self {
            plan,
            client,
            slots: Arc::new(Semaphore::new(plan.max_concurrency)),
            capped_until: None,
            flights: JoinSet::new(),
            tally: Tally::default(),
            progress: Progress::start(rate),
        }
    }

    async fn run(mut self, rate: Rate) -> Result<RateReport, Error> {
        let start = Instant::now();
        match rate {
            Rate::PerSecond(rate) => self.open_loop(start, rate).await?,
            Rate::Unbounded => self.closed_loop(start).await,
        }
        while let Some(flight) = self.flights.join_next().await {
            self.land(&flight.expect("a flight neither panics nor is aborted"));
        }
        Ok(self.tally.finish(rate, start, self.plan.workload.batch))
    }

    /// Sends each request when it is due, however many are still unanswered.
    async fn open_loop(&mut self, start: Instant, rate: f64) -> Result<(), Error> {
        let arrivals = self.plan.arrivals(rate);
        let bodies = self.plan.workload.bodies(self.plan.seed);
        let mut due = pacer::spawn(start, self.plan.extent, arrivals, bodies)
            .map_err(|source| Error::Pacer { source })?;
        while let Some(Arrival { due, body }) = due.recv().await {
            if let Some(slot) = self.slot_for(due).await {
                self.launch(due, body, slot);
            } else {
                self.progress.sent();
                let outcome = Err(Failure::Timeout(self.plan.timeout));
                self.land(&Flight {
                    due,
                    ended: Instant::now(),
                    outcome,
                });
            }
            self.land_finished();
        }
        Ok(())
    }

    /// A slot for the request that was due then, or `None` if the concurrency cap kept it until
    /// it had failed anyway. Counts what the cap delayed apart from the generator's own lag.
    async fn slot_for(&mut self, due: Instant) -> Option<OwnedSemaphorePermit> {
        let (slot, waited) = match Arc::clone(&self.slots).try_acquire_owned() {
            Ok(slot) => (Some(slot), false),
            Err(_) => {
                let deadline = due + self.plan.timeout;
                let slot = timeout_at(deadline.into(), free_slot(&self.slots))
                    .await
                    .ok();
                self.capped_until = Some(Instant::now());
                (slot, true)
            }
        };
        // A request may also have waited behind another one that waited for the cap.
        if waited || self.capped_until.is_some_and(|until| due < until) {
            self.tally.delayed += 1;
        } else {
            self.tally.send_lag.push(due.elapsed());
        }
        slot
    }

    /// Sends a request as soon as a slot is free, which is its scheduled send.
    async fn closed_loop(&mut self, start: Instant) {
        for (idx, body) in (0..).zip(self.plan.workload.bodies(self.plan.seed)) {
            let slot = free_slot(&self.slots).await;
            let due = Instant::now();
            if !self.plan.extent.holds(idx, due - start) {
                return;
            }
            self.launch(due, body, slot);
            self.land_finished();
        }
    }

    fn launch(&mut self, due: Instant, body: Bytes, slot: OwnedSemaphorePermit) {
        let client = Arc::clone(self.client);
        let timeout = self.plan.timeout;
        self.flights.spawn(async move {
            let outcome = match timeout_at((due + timeout).into(), client.post(body)).await {
                Ok(outcome) => outcome,
                Err(_) => Err(Failure::Timeout(timeout)),
            };
            drop(slot);
            Flight {
                due,
                ended: Instant::now(),
                outcome,
            }
        });
        let in_flight = self.plan.max_concurrency - self.slots.available_permits();
        self.tally.max_in_flight = self.tally.max_in_flight.max(in_flight);
        self.progress.sent();
    }

    fn land_finished(&mut self) {
        while let Some(flight) = self.flights.try_join_next() {
            self.land(&flight.expect("a flight neither panics nor is aborted"));
        }
    }

    fn land(&mut self, flight: &Flight) {
        self.progress.landed(flight.outcome.is_ok());
        self.tally.record(flight);
    }
}

async fn free_slot(slots: &Arc<Semaphore>) -> OwnedSemaphorePermit {
    Arc::clone(slots)
        .acquire_owned()
        .await
        .expect("the semaphore is never closed")
}
