//! A curve drawn in text, for terminals, logs and READMEs.
//!
//! Braille characters hold two by four dots each, so a plot of 80 by 16 characters resolves 140 by 64 points. Each
//! column of dots shows the mean of the points that fall into it, joined to its neighbours.

/// Four dots high: the dots of a Braille character by row, left and right.
const DOTS: [[u8; 2]; 4] = [[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]];

/// Draws `series`, points (x, y) in order of x, with labelled axes under `title`.
///
/// `width` is the whole width in characters and `height` the rows of the curve (at least 40 and 5 are used). `floor`
/// is drawn as a dotted line with its value beside it, as is the last value of the series. Points that are not finite
/// are left out.
pub fn ascii_plot(series: &[(f64, f64)], width: usize, height: usize, floor: Option<f64>, title: &str) -> String {
    let points: Vec<(f64, f64)> = series.iter().copied().filter(|(x, y)| x.is_finite() && y.is_finite()).collect();
    let floor = floor.filter(|floor| floor.is_finite());
    let (Some(first), Some(last)) = (points.first(), points.last()) else {
        return format!("{title}\n(no data)\n");
    };
    let rows = height.max(5);
    let low = points.iter().map(|p| p.1).chain(floor).fold(f64::INFINITY, f64::min);
    let high = points.iter().map(|p| p.1).chain(floor).fold(f64::NEG_INFINITY, f64::max);
    let y = Axis::new(low, high, 4 * rows, rows / 3);
    let labels: Vec<String> = (0..rows).map(|row| y.label(4 * row..4 * row + 4)).collect();
    let margin = labels.iter().map(String::len).max().unwrap_or(0);
    let notes = margin_notes(&y, rows, last.1, floor);
    let note_width = notes.iter().map(|note| note.chars().count()).max().unwrap_or(0).max("00 (step)".len());
    let columns = width.max(40).saturating_sub(margin + 2 + note_width).max(10);
    let x = Axis::new(first.0, last.0, 2 * columns, columns / 12);

    let mut canvas = Canvas { columns, cells: vec![0; rows * columns] };
    let heights = column_means(&points, &x);
    let dots: Vec<(usize, usize)> =
        heights.iter().enumerate().filter_map(|(column, mean)| Some((column, y.dot((*mean)?)))).collect();
    if let Some(floor) = floor {
        (0..2 * columns).step_by(4).for_each(|column| canvas.set(column, y.dot(floor)));
    }
    dots.iter().for_each(|&(column, height)| canvas.set(column, height));
    dots.windows(2).for_each(|pair| canvas.line(pair[0], pair[1]));

    let mut plot = format!("{title}\n");
    for (row, (label, note)) in labels.iter().zip(&notes).enumerate().rev() {
        let tick = if label.is_empty() { '│' } else { '┤' };
        let line = format!("{label:>margin$} {tick}{}{note}", canvas.row(row));
        plot.push_str(line.trim_end());
        plot.push('\n');
    }
    plot.push_str(&x_axis(&x, columns, margin));
    plot
}

/// A range of values laid over a row of dots, and the round values that label it.
struct Axis {
    low: f64,
    high: f64,
    dots: usize,
    /// Distance between labelled values: 1, 2 or 5 times a power of ten.
    tick: f64,
}

impl Axis {
    /// At most about `ticks` labels.
    fn new(low: f64, high: f64, dots: usize, ticks: usize) -> Self {
        // A range lost in rounding is a single value, and a single value goes into the middle.
        let size = low.abs().max(high.abs());
        let flat = high - low <= f64::max(1e-9 * size, 1e-300);
        let (low, high) =
            if flat { (low - f64::max(0.5, 1e-3 * size), low + f64::max(0.5, 1e-3 * size)) } else { (low, high) };
        let least = (high - low) / ticks.max(1) as f64;
        let power = 10f64.powf(least.log10().floor());
        let tick = [1.0, 2.0, 5.0].into_iter().map(|m| m * power).find(|t| *t >= least).unwrap_or(10.0 * power);
        Self { low, high, dots, tick }
    }

    fn dot(&self, value: f64) -> usize {
        (((value - self.low) / (self.high - self.low)).clamp(0.0, 1.0) * (self.dots - 1) as f64).round() as usize
    }

    /// The labelled values, from low to high.
    fn ticks(&self) -> impl Iterator<Item = f64> {
        let first = (self.low / self.tick).ceil() as i64;
        let last = (self.high / self.tick).floor() as i64;
        (first..=last).map(|i| i as f64 * self.tick)
    }

    /// The label of the tick that falls into the given dots, or nothing.
    fn label(&self, dots: std::ops::Range<usize>) -> String {
        let tick = self.ticks().find(|tick| dots.contains(&self.dot(*tick)));
        tick.map(|tick| self.format(tick)).unwrap_or_default()
    }

    /// With as many decimals as the distance between ticks needs; thousands as `k`, millions as `M`.
    fn format(&self, value: f64) -> String {
        let (unit, suffix) = match self.tick {
            tick if tick >= 1e5 => (1e6, "M"),
            tick if tick >= 100.0 && self.high >= 1e4 => (1e3, "k"),
            _ => (1.0, ""),
        };
        let decimals = (-(self.tick / unit).log10().floor()).max(0.0) as usize;
        let suffix = if value == 0.0 { "" } else { suffix };
        let decimals = if value == 0.0 && unit > 1.0 { 0 } else { decimals };
        format!("{:.decimals$}{suffix}", value / unit)
    }
}

/// What stands to the right of each row: the last value and the floor.
fn margin_notes(y: &Axis, rows: usize, last: f64, floor: Option<f64>) -> Vec<String> {
    let mut notes = vec![String::new(); rows];
    let decimals = (1.0 - y.tick.log10().floor()).max(3.0) as usize;
    let row = y.dot(last) / 4;
    notes[row] = format!(" {last:.decimals$}");
    if let Some(floor) = floor {
        // The two may meet, and it is then that both matter: the floor keeps its row, the value goes above it.
        let at = y.dot(floor) / 4;
        if at == row && at + 1 < rows {
            notes.swap(row, row + 1);
        }
        notes[at] = format!(" floor {floor:.decimals$}{}", notes[at]);
    }
    notes
}

/// The mean of the points in each column of dots.
fn column_means(points: &[(f64, f64)], x: &Axis) -> Vec<Option<f64>> {
    let mut sums = vec![(0.0, 0.0); x.dots];
    for &(at, value) in points {
        let (sum, count) = &mut sums[x.dot(at)];
        *sum += value;
        *count += 1.0;
    }
    sums.into_iter().map(|(sum, count)| (count > 0.0).then_some(sum / count)).collect()
}

/// The horizontal axis and its labels, each centred under its tick.
fn x_axis(x: &Axis, columns: usize, margin: usize) -> String {
    let mut axis = vec!['─'; columns];
    let mut labels = vec![' '; columns + margin + 14];
    for tick in x.ticks() {
        let column = x.dot(tick) / 2;
        let text = x.format(tick);
        axis[column] = '┬';
        let start = (margin + 2 + column).saturating_sub(text.len() / 2);
        labels.iter_mut().skip(start).zip(text.chars()).for_each(|(cell, c)| *cell = c);
    }
    let axis: String = axis.into_iter().collect();
    let labels: String = labels.into_iter().collect();
    format!("{:margin$} └{axis}\n{} (step)\n", "", labels.trim_end())
}

/// Dots by row, the lowest first.
struct Canvas {
    columns: usize,
    cells: Vec<u8>,
}

impl Canvas {
    fn set(&mut self, x: usize, y: usize) {
        self.cells[y / 4 * self.columns + x / 2] |= DOTS[3 - y % 4][x % 2];
    }

    /// Joins two dots, x to the right, so that no row between them is left empty.
    fn line(&mut self, (x0, y0): (usize, usize), (x1, y1): (usize, usize)) {
        let steps = (x1 - x0).max(y0.abs_diff(y1)).max(1);
        for step in 0..=steps {
            self.set(interpolate(x0, x1, step, steps), interpolate(y0, y1, step, steps));
        }
    }

    fn row(&self, row: usize) -> String {
        let cells = &self.cells[row * self.columns..(row + 1) * self.columns];
        cells.iter().map(|dots| braille(*dots)).collect()
    }
}

/// The place after `step` of `steps` equal steps from `a` to `b`, rounded.
fn interpolate(a: usize, b: usize, step: usize, steps: usize) -> usize {
    (a * (steps - step) + b * step + steps / 2) / steps
}

fn braille(dots: u8) -> char {
    if dots == 0 { ' ' } else { char::from_u32(0x2800 + u32::from(dots)).unwrap_or(' ') }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The dots of a plot's curve area, as (column, height) pairs, read back from its characters.
    fn dots(plot: &str) -> Vec<(usize, usize)> {
        let rows: Vec<&str> = plot.lines().filter(|line| line.contains(['│', '┤'])).collect();
        let mut dots = Vec::new();
        for (height, row) in rows.iter().rev().enumerate() {
            let cells = row.chars().skip_while(|c| !['│', '┤'].contains(c)).skip(1);
            for (column, cell) in cells.enumerate().filter(|(_, c)| ('\u{2800}'..='\u{28ff}').contains(c)) {
                let bits = (cell as u32 - 0x2800) as u8;
                for (sub, pair) in DOTS.iter().enumerate() {
                    let at = |side: usize| (2 * column + side, 4 * height + 3 - sub);
                    dots.extend((0..2).filter(|side| bits & pair[*side] != 0).map(at));
                }
            }
        }
        dots
    }

    #[test]
    fn a_falling_curve_falls_and_rests_on_its_floor() {
        let series: Vec<(f64, f64)> =
            (0..=1000).map(|i| (f64::from(i), 1.0 + 4.0 * (-f64::from(i) / 100.0).exp())).collect();
        let plot = ascii_plot(&series, 80, 12, None, "loss");
        let dots = dots(&plot);
        assert!(dots.iter().any(|dot| dot.0 == 0 && dot.1 >= 45), "starts at the top left:\n{plot}");
        let columns = dots.iter().map(|dot| dot.0).max().unwrap();
        assert!((130..160).contains(&columns), "{columns} columns of dots are in use");
        let highest = |column| dots.iter().filter(|dot| dot.0 == column).map(|dot| dot.1).max().unwrap();
        for column in 0..columns {
            assert!(highest(column) >= highest(column + 1), "rises at {column}:\n{plot}");
        }
        assert_eq!(highest(columns), 0, "ends at the bottom:\n{plot}");
        let middle = dots.iter().filter(|dot| (23..=25).contains(&dot.1)).map(|dot| dot.0).min().unwrap();
        assert!(middle.abs_diff(columns * 69 / 1000) <= 2, "halves after 69 steps, not at column {middle}:\n{plot}");
        assert!(plot.lines().all(|line| line.chars().count() <= 80), "{plot}");
    }

    /// The whole picture, so that a change of layout is seen by whoever makes it.
    #[test]
    fn the_plot_is_drawn_as_ever() {
        let series = [(0.0, 4.0), (10.0, 2.0), (20.0, 1.25), (30.0, f64::NAN), (40.0, 1.0)];
        let want = [
            "bits per byte",
            "4 ┤⠑⢄",
            "  │  ⠑⢄⡀",
            "  │    ⠈⠢⡀",
            "2 ┤      ⠈⠢⣀",
            "  │         ⠉⠉⠒⠢⠤⣀⣀                  1.000",
            "  │⡀ ⡀ ⡀ ⡀ ⡀ ⡀ ⡀ ⡀ ⡉⠉⡉⠉⡉⠒⡒⠒⡒⠒⡒⠒⡒⠤⡤⠤⡤ floor 0.900",
            "  └┬───────────────┬───────────────┬",
            "   0              20              40 (step)",
            "",
        ];
        assert_eq!(ascii_plot(&series, 48, 6, Some(0.9), "bits per byte"), want.join("\n"));
    }

    #[test]
    fn axes_are_labelled_with_round_numbers() {
        let labels = |low, high, ticks| {
            let axis = Axis::new(low, high, 100, ticks);
            axis.ticks().map(|tick| axis.format(tick)).collect::<Vec<_>>()
        };
        assert_eq!(labels(0.9, 3.4, 5), ["1.0", "1.5", "2.0", "2.5", "3.0"]);
        assert_eq!(labels(0.93, 0.97, 4), ["0.93", "0.94", "0.95", "0.96", "0.97"]);
        assert_eq!(labels(1.0, 3000.0, 6), ["500", "1000", "1500", "2000", "2500", "3000"]);
        assert_eq!(labels(0.0, 43_500.0, 5), ["0", "10k", "20k", "30k", "40k"]);
        assert_eq!(labels(0.0, 2e6, 4), ["0", "0.5M", "1.0M", "1.5M", "2.0M"]);
    }

    #[test]
    fn awkward_series_are_drawn_without_panic() {
        assert_eq!(ascii_plot(&[], 80, 12, Some(1.0), "t"), "t\n(no data)\n");
        assert_eq!(ascii_plot(&[(1.0, f64::NAN)], 80, 12, None, "t"), "t\n(no data)\n");
        let extremes =
            [0.0, -0.0, 1e-300, -5.0, 1e300, 7e15, 7e15 + 1.0, f64::MIN_POSITIVE, 5e-324, f64::MAX, f64::MIN];
        for a in extremes {
            for b in extremes {
                let plot = ascii_plot(&[(a, b), (a.max(b), a)], 0, 0, Some(b), "t");
                assert!(!dots(&plot).is_empty(), "{a} {b}");
            }
        }
        let plot = ascii_plot(&[(1.0, 2.0), (2.0, 2.0)], 60, 5, Some(2.0), "flat");
        assert!(plot.contains("floor 2.000"), "{plot}");
    }
}
