//! Ranks that are threads of the test, and what holds for any engine.

use super::group::ProcessGroup;
use super::shards::Shards;
use super::{Collective, WhileWaiting, tree};
use crate::runtime::error::{Exit, StopAsked, fail, failure_in};
use anyhow::Result;
use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};

/// A rank that is a thread.
struct ThreadRank {
    rank: usize,
    to: Vec<Sender<Vec<u8>>>,
    from: Vec<Mutex<Receiver<Vec<u8>>>>,
}

impl Collective for ThreadRank {
    fn rank(&self) -> usize {
        self.rank
    }

    fn ranks(&self) -> usize {
        self.to.len()
    }

    fn exchange(&self, peer: usize, send: &[u8], receive: &mut [u8], wait: WhileWaiting) -> Result<()> {
        self.to[peer].send(send.to_vec()).map_err(|_| anyhow::anyhow!("rank {peer} is gone"))?;
        let from = self.from[peer].lock().unwrap();
        loop {
            match from.try_recv() {
                Ok(bytes) => {
                    anyhow::ensure!(bytes.len() == receive.len(), "{} bytes, not {}", bytes.len(), receive.len());
                    receive.copy_from_slice(&bytes);
                    return Ok(());
                }
                Err(TryRecvError::Empty) => wait()?,
                Err(TryRecvError::Disconnected) => anyhow::bail!("rank {peer} is gone"),
            }
            std::thread::yield_now();
        }
    }

    fn abort(&self, code: i32) -> ! {
        panic!("aborted with {code}")
    }
}

/// Runs `work` on `ranks` ranks at once; returns what each of them does.
pub(crate) fn with_ranks<T: Send>(ranks: usize, work: impl Fn(ProcessGroup) -> T + Sync) -> Vec<T> {
    let mut to: Vec<Vec<Sender<Vec<u8>>>> = (0..ranks).map(|_| Vec::new()).collect();
    let mut from: Vec<Vec<Mutex<Receiver<Vec<u8>>>>> = (0..ranks).map(|_| Vec::new()).collect();
    for sender in &mut to {
        for receiver in &mut from {
            let (end, start) = channel();
            sender.push(end);
            receiver.push(Mutex::new(start));
        }
    }
    let ends = to.into_iter().zip(from).enumerate().map(|(rank, (to, from))| ThreadRank { rank, to, from });
    let ends: Vec<ThreadRank> = ends.collect();
    let work = &work;
    std::thread::scope(|scope| {
        let threads =
            ends.into_iter().map(|end| scope.spawn(move || work(ProcessGroup::new(Box::new(end), "cpu").unwrap())));
        let threads: Vec<_> = threads.collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

pub(super) fn gradient(rank: usize, n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 13 + rank * 101) as f32 * 0.61).sin() * 10f32.powi((i % 7) as i32)).collect()
}

/// The sum of the gradients of `ranks` ranks, joined in pairs.
pub(super) fn sum_of_tree(ranks: usize, n: usize) -> Vec<f32> {
    let mut level: Vec<Vec<f32>> = (0..ranks).map(|rank| gradient(rank, n)).collect();
    while level.len() > 1 {
        let joined = level.chunks(2).map(|pair| pair[0].iter().zip(&pair[1]).map(|(a, b)| a + b).collect());
        level = joined.collect();
    }
    level.remove(0)
}

#[test]
fn sums_over_ranks_are_those_of_the_tree() {
    for ranks in [1, 2, 4, 8] {
        for (n, piece) in [(10_000, 128), (100, 64), (3, 64)] {
            let shards = Shards::new(n, piece, ranks);
            let gathered = with_ranks(ranks, |group| {
                let flat = Tensor::from_vec(gradient(group.rank(), n), n, &Device::Cpu).unwrap();
                tree::reduce_scatter(&group, &flat, &shards).unwrap();
                tree::all_gather(&group, &flat, &shards).unwrap();
                flat.to_vec1::<f32>().unwrap()
            });
            let expected = sum_of_tree(ranks, n);
            assert!(gathered.iter().all(|sum| *sum == expected), "{ranks} ranks, {n} elements");
        }
    }
}

#[test]
fn what_ranks_send_arrives_in_their_order_at_any_length() {
    for ranks in [1, 2, 8] {
        let long = |rank: usize| "x".repeat(rank * 700);
        let received = with_ranks(ranks, |group| group.gather("texts", &long(group.rank())).unwrap());
        assert!(received.iter().all(|received| *received == (0..ranks).map(long).collect::<Vec<_>>()));
        let dealt = with_ranks(ranks, |group| group.deal("squares", 13, |i| Ok(i * i)).unwrap());
        assert!(dealt.iter().all(|dealt| *dealt == (0..13).map(|i| i * i).collect::<Vec<_>>()));
        let first = with_ranks(ranks, |group| group.on_first("it", || Ok(group.rank() + 7)).unwrap());
        assert_eq!(first, vec![7; ranks]);
        let nothing = with_ranks(ranks, |group| group.on_first::<Option<()>>("nothing", || Ok(None)).unwrap());
        assert_eq!(nothing, vec![None; ranks]);
    }
}

#[test]
fn what_one_is_asked_all_are_asked() {
    for ranks in [1, 2, 4] {
        let asked = with_ranks(ranks, |group| group.any("a request", group.rank() + 1 == ranks).unwrap());
        assert_eq!(asked, vec![true; ranks]);
        let not_asked = with_ranks(ranks, |group| group.any("a request", false).unwrap());
        assert_eq!(not_asked, vec![false; ranks]);
    }
}

#[test]
fn a_failure_of_one_is_the_failure_of_all() {
    let failures = with_ranks(4, |group| {
        let own = if group.rank() == 2 { Err(fail(Exit::Data, "bad data").hint("mend it").into()) } else { Ok(()) };
        let error = if group.rank() == 3 {
            // At another message than the others: it still hears of it.
            group.gather("losses", &1).unwrap_err()
        } else {
            group.agree("the data", own).unwrap_err()
        };
        let failure = failure_in(&error).unwrap().clone();
        (failure.exit, failure.message, failure.hint)
    });
    for (exit, message, hint) in failures {
        assert_eq!((exit, hint.as_deref()), (Exit::Data, Some("mend it")));
        assert!(message.starts_with("rank 2 (host ") && message.ends_with("cpu): bad data"), "{message}");
    }
}

#[test]
fn ranks_that_are_at_different_places_are_named() {
    let errors = with_ranks(2, |group| {
        let about = if group.rank() == 0 { "losses" } else { "weights" };
        group.gather(about, &1).unwrap_err().to_string()
    });
    assert!(errors.iter().all(|error| error.contains("\"losses\"") && error.contains("\"weights\"")), "{errors:?}");
}

#[test]
fn no_rank_waits_for_ever() {
    let errors = with_ranks(2, |group| {
        group.set_patience(std::time::Duration::from_millis(100));
        if group.rank() == 1 {
            std::thread::sleep(std::time::Duration::from_millis(500));
            return String::new();
        }
        group.gather("losses", &1).unwrap_err().to_string()
    });
    assert!(errors[0].starts_with("rank 1 (host ") && errors[0].contains("has not answered"), "{errors:?}");
}

/// A float in a message.
#[derive(Serialize, Deserialize)]
struct Float(#[serde(with = "super::exact")] f64);

#[test]
fn floats_arrive_with_their_bits() {
    let sent = [f64::NAN, -f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.0, 0.1, f64::MIN_POSITIVE / 3.0, f64::MAX];
    let bits = sent.map(f64::to_bits);
    let received = with_ranks(2, |group| group.deal("floats", sent.len(), |i| Ok(Float(sent[i]))).unwrap());
    for floats in received {
        assert_eq!(floats.iter().map(|float| float.0.to_bits()).collect::<Vec<_>>(), bits);
    }
}

#[test]
fn all_is_dealt_out_once_and_heard_of_by_rounds() {
    for ranks in [1, 2, 4, 8] {
        for count in [0, 1, 3, 8, 130, 1000] {
            let dealt = with_ranks(ranks, |group| {
                let mut progress = Vec::new();
                let received = group.deal("pieces", count, |i| {
                    progress.push(group.dealt(i, count));
                    Ok((i, group.rank()))
                });
                (received.unwrap(), progress)
            });
            let want: Vec<(usize, usize)> = (0..count).map(|i| (i, i % ranks)).collect();
            assert!(dealt.iter().all(|(received, _)| *received == want), "{count} on {ranks}");
            let rounds: Vec<usize> = (1..=count.div_ceil(ranks)).map(|round| (round * ranks).min(count)).collect();
            assert_eq!(dealt[0].1, rounds, "{count} on {ranks}");
        }
    }
}

#[test]
fn a_request_to_stop_one_stops_all_and_ends_nothing() {
    let done = with_ranks(4, |group| {
        let mut done = 0;
        let stopped = group.deal("pieces", 10_000, |i| {
            done += 1;
            if i == 402 { Err(anyhow::Error::from(StopAsked).context("on the way")) } else { Ok(()) }
        });
        assert!(stopped.unwrap_err().is::<StopAsked>());
        let own = if group.rank() == 1 { Err(StopAsked.into()) } else { Ok(()) };
        assert!(group.agree("the pieces", own).unwrap_err().is::<StopAsked>());
        let asked = group.on_first::<()>("the first", || Err(StopAsked.into()));
        assert!(asked.unwrap_err().is::<StopAsked>());
        let of_others =
            group.first_then_others("the others", || if group.is_first() { Ok(()) } else { Err(StopAsked.into()) });
        assert!(of_others.unwrap_err().is::<StopAsked>());
        assert!(group.end(Err(StopAsked.into())).unwrap_err().is::<StopAsked>());
        assert_eq!(group.deal("more", 5, Ok).unwrap(), [0, 1, 2, 3, 4]);
        done
    });
    // Nobody does all of it: the others hear of the request soon after.
    assert!(done.iter().all(|done| (101..150).contains(done)), "{done:?}");
}

#[test]
fn ranks_that_deal_out_something_else_are_found_out() {
    let errors = with_ranks(2, |group| group.deal("pieces", 10 + group.rank(), Ok).unwrap_err().to_string());
    assert!(errors.iter().all(|error| error.contains("0..10 of 10") && error.contains("0..11 of 11")), "{errors:?}");
}

#[test]
fn what_differs_between_ranks_is_named() {
    let errors = with_ranks(4, |group| {
        group.ensure_same("text", || Ok("the same".into())).unwrap();
        let own = if group.rank() == 2 { "another" } else { "model" };
        failure_in(&group.ensure_same("model", || Ok(own.into())).unwrap_err()).unwrap().clone()
    });
    for error in errors {
        assert_eq!(error.exit, Exit::Data);
        assert!(error.message.starts_with("the model of rank 2 (host "), "{error}");
    }
    let alone = ProcessGroup::one().ensure_same("model", || Err(fail(Exit::Internal, "nobody asks").into()));
    assert!(alone.is_ok());
}
