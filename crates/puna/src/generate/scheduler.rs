//! Who gets how many rows of the next step. Data in, data out.
//!
//! Sequences that need one row (decode) come first, so that a long prompt never holds up the
//! others' streams; what is left goes to prompts in the order of their arrival, in chunks.

/// Rows for each sequence, given how many each still needs. The sum is at most `max_rows`.
pub(super) fn plan(pending: &[usize], max_rows: usize) -> Vec<usize> {
    let mut left = max_rows;
    let mut take = |wanted: usize| {
        let rows = wanted.min(left);
        left -= rows;
        rows
    };
    let mut rows: Vec<usize> = pending.iter().map(|&n| if n == 1 { take(1) } else { 0 }).collect();
    for (rows, &n) in rows.iter_mut().zip(pending).filter(|(_, n)| **n > 1) {
        *rows = take(n);
    }
    rows
}

/// Shares `left` rows out among those who wish for some: the small wishes whole, the others alike.
pub(super) fn share(wishes: &[usize], mut left: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..wishes.len()).collect();
    order.sort_by_key(|&index| wishes[index]);
    let mut shares = vec![0; wishes.len()];
    for (n_done, &index) in order.iter().enumerate() {
        shares[index] = wishes[index].min(left / (order.len() - n_done));
        left -= shares[index];
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::{plan, share};

    #[test]
    fn shares_are_even() {
        assert_eq!(share(&[9, 0, 2, 9], 12), [5, 0, 2, 5]);
        assert_eq!(share(&[4, 4], 100), [4, 4]);
        assert_eq!(share(&[4, 4, 4], 2), [0, 1, 1]);
        assert_eq!(share(&[4, 4], 0), [0, 0]);
        assert_eq!(share(&[], 5), [0; 0]);
    }

    #[test]
    fn decode_comes_before_prompts() {
        assert_eq!(plan(&[100, 1, 1], 10), [8, 1, 1]);
        assert_eq!(plan(&[5, 100, 1], 10), [5, 4, 1]);
    }

    #[test]
    fn the_budget_holds() {
        assert_eq!(plan(&[1, 1, 1], 2), [1, 1, 0]);
        assert_eq!(plan(&[7, 7], 7), [7, 0]);
        assert_eq!(plan(&[], 7), [0; 0]);
    }
}
