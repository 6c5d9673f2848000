use super::*;

fn close(found: f64, expected: f64) {
    assert!((found - expected).abs() < 5e-4, "{found}, not {expected}");
}

#[test]
fn the_exact_test_agrees_with_what_can_be_counted_by_hand() {
    // 20 ways to choose 3 of 6; the two extreme ones are as far away.
    let test = mann_whitney(&[1.0, 2.0, 3.0], &[4.0, 5.0, 6.0]);
    close(test.p, 2.0 / 20.0);
    assert_eq!(test.superiority, 1.0);
    // 70 ways to choose 4 of 8.
    let test = mann_whitney(&[1.0, 2.0, 3.0, 4.0], &[5.0, 6.0, 7.0, 8.0]);
    close(test.p, 2.0 / 70.0);
    // Alike.
    let test = mann_whitney(&[1.0, 4.0], &[2.0, 3.0]);
    assert_eq!((test.superiority, test.p), (0.5, 1.0));
}

#[test]
fn ties_are_counted_exactly() {
    let test = mann_whitney(&[1.0, 1.0], &[1.0, 1.0]);
    assert_eq!((test.superiority, test.p), (0.5, 1.0));
    // Ranks 1.5, 1.5, 3, 4: of 6 choices, {3, 4} and {1.5, 1.5} are the farthest.
    let test = mann_whitney(&[1.0, 1.0], &[2.0, 3.0]);
    close(test.p, 2.0 / 6.0);
    // Ranks 1, 3, 3, 3, 5.5, 5.5: of 20 choices, {3, 5.5, 5.5} and {1, 3, 3} occur three times each.
    let test = mann_whitney(&[1.0, 2.0, 2.0], &[2.0, 3.0, 3.0]);
    close(test.superiority, 8.0 / 9.0);
    close(test.p, 0.3);
}

#[test]
fn the_normal_approximation_meets_the_exact_one() {
    let x: Vec<f64> = (0..30).map(|i| f64::from(i) * 1.37 % 10.0).collect();
    let y: Vec<f64> = (0..30).map(|i| f64::from(i) * 1.91 % 10.0 + 1.4).collect();
    let (ranks, ties) = doubled_ranks(&x, &y);
    let sum: u64 = ranks[30..].iter().sum();
    let exact = exact(&ranks, 30, sum);
    let normal = normal((sum - 30 * 31) as f64 / 2.0, 30, 30, &ties);
    assert!((exact - normal).abs() < 0.01, "{exact} and {normal}");
}

#[test]
fn a_shift_is_found_with_an_interval_around_it() {
    let x: Vec<f64> = (0..10).map(f64::from).collect();
    let y: Vec<f64> = x.iter().map(|value| value + 5.0).collect();
    let found = shift(&x, &y, 0.05);
    assert_eq!(found.estimate, 5.0);
    // The tables' critical value for 10 and 10 at 5% is U = 23: the 24th difference from each end.
    assert_eq!((found.low, found.high), (2.0, 8.0));
    assert_eq!(skipped(10, 10, 0.05), Some(23));
    assert_eq!(skipped(4, 4, 0.05), Some(0));
    assert_eq!(skipped(3, 3, 0.05), None);
    assert_eq!(shift(&[1.0], &[2.0], 0.05).high, f64::INFINITY);
}

#[test]
fn many_values_are_thinned_out_and_still_agree() {
    let x: Vec<f64> = (0..5000).map(|i| f64::from(i % 100)).collect();
    let y: Vec<f64> = x.iter().map(|value| value + 10.0).collect();
    let found = shift(&x, &y, 0.05);
    assert!((found.estimate - 10.0).abs() < 1.0, "{found:?}");
    assert!(found.low > 5.0 && found.high < 15.0, "{found:?}");
}

#[test]
fn the_more_is_compared_the_less_chance_may_decide() {
    let mut values = [0.01, 0.04, 0.03];
    holm(&mut values, |value| value);
    assert_eq!(values, [0.03, 0.06, 0.06]);
}
