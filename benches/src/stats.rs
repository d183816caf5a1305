//! Medians, spreads and ratios. A ratio is the median of the ratios of each round, so that a noisy
//! minute touches both sides.
#![forbid(unsafe_code)]

/// The middle of some measurements and how far they lie apart.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Summary {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Summary {
    /// `None` of no values.
    pub(crate) fn of(values: &[f64]) -> Option<Summary> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 {
            sorted[middle]
        } else {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        };
        Some(Summary { median, min, max })
    }
}

/// The median of `ours[round] / theirs[round]` over the rounds in which both were measured.
pub(crate) fn paired_ratio(ours: &[Option<f64>], theirs: &[Option<f64>]) -> Option<f64> {
    let ratios: Vec<f64> = ours
        .iter()
        .zip(theirs)
        .filter_map(|(ours, theirs)| Some((*ours)? / (*theirs)?))
        .filter(|ratio| ratio.is_finite())
        .collect();
    Summary::of(&ratios).map(|summary| summary.median)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_odd_number_is_the_middle_one() {
        let summary = Summary::of(&[9.0, 1.0, 2.0]).unwrap();
        assert_eq!(summary, Summary { median: 2.0, min: 1.0, max: 9.0 });
    }

    #[test]
    fn the_median_of_an_even_number_lies_between_the_two_in_the_middle() {
        assert!((Summary::of(&[4.0, 1.0, 2.0, 100.0]).unwrap().median - 3.0).abs() < 1e-9);
    }

    #[test]
    fn nothing_has_no_median() {
        assert_eq!(Summary::of(&[]), None);
        assert_eq!(paired_ratio(&[Some(1.0), None], &[None, Some(1.0)]), None);
    }

    #[test]
    fn ratios_pair_the_values_of_one_round() {
        // The machine was ten times slower in the second round: every pair still says 2.
        let ours = [Some(20.0), Some(2.0), Some(22.0)];
        let theirs = [Some(10.0), Some(1.0), Some(11.0)];
        assert_eq!(paired_ratio(&ours, &theirs), Some(2.0));
    }

    #[test]
    fn a_division_by_zero_is_left_out() {
        assert_eq!(paired_ratio(&[Some(1.0), Some(3.0)], &[Some(0.0), Some(1.0)]), Some(3.0));
    }
}
