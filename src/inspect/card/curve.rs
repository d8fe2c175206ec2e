//! The loss of a run as a picture, SVG, for a page that loads pictures from beside it.

use crate::runtime::format::rate;

/// Size of the picture, and the room that labels take, in pixels.
const WIDTH: f64 = 800.0;
const HEIGHT: f64 = 380.0;
const LEFT: f64 = 56.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = 44.0;

pub(super) type Points = [(f64, f64)];

/// Training and validation loss against steps; none where there are not two points to join.
pub(super) fn loss_curves(train: &Points, val: &Points) -> Option<String> {
    let is_finite = |point: &&(f64, f64)| point.0.is_finite() && point.1.is_finite();
    let train: Vec<(f64, f64)> = train.iter().filter(is_finite).copied().collect();
    let val: Vec<(f64, f64)> = val.iter().filter(is_finite).copied().collect();
    if train.len().max(val.len()) < 2 {
        return None;
    }
    let all = || train.iter().chain(&val);
    let x = Axis::around(all().map(|point| point.0), LEFT, WIDTH - RIGHT);
    let y = Axis::around(all().map(|point| point.1), HEIGHT - BOTTOM, TOP);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#ffffff\"/>\n"
    );
    for tick in y.ticks(6.0) {
        let at = y.place(tick);
        svg += &format!("<path d=\"M{LEFT} {at:.1}H{}\" stroke=\"#dddddd\"/>\n", WIDTH - RIGHT);
        svg +=
            &format!("<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\n", LEFT - 8.0, at + 4.5, short(tick));
    }
    for tick in x.ticks(8.0) {
        let at = x.place(tick);
        svg += &format!(
            "<text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>\n",
            HEIGHT - BOTTOM + 18.0,
            rate(tick)
        );
    }
    svg += &format!("<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">step</text>\n", WIDTH / 2.0, HEIGHT - 8.0);
    let series = [("training loss (smoothed)", "#1f77b4", train), ("validation loss", "#d62728", val)];
    let mut label = LEFT;
    for (name, color, points) in series.into_iter().filter(|(.., points)| !points.is_empty()) {
        svg += &line(&points, &x, &y, color);
        svg += &format!("<text x=\"{label}\" y=\"20\" fill=\"{color}\">{name}</text>\n");
        label += 190.0;
    }
    Some(svg + "</svg>\n")
}

fn line(points: &Points, x: &Axis, y: &Axis, color: &str) -> String {
    let places: Vec<String> =
        points.iter().map(|point| format!("{:.1},{:.1}", x.place(point.0), y.place(point.1))).collect();
    let mut svg =
        format!("<polyline fill=\"none\" stroke=\"{color}\" stroke-width=\"1.8\" points=\"{}\"/>\n", places.join(" "));
    if let [only] = places.as_slice()
        && let Some((x, y)) = only.split_once(',')
    {
        // A line through one point would not be seen.
        svg += &format!("<circle cx=\"{x}\" cy=\"{y}\" r=\"3\" fill=\"{color}\"/>\n");
    }
    svg
}

/// A tick with as many decimals as its size needs.
fn short(tick: f64) -> String {
    let text = format!("{tick:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Values laid over a row of pixels.
struct Axis {
    low: f64,
    high: f64,
    first_pixel: f64,
    last_pixel: f64,
}

impl Axis {
    /// From the lowest of `values` to the highest; a single value is given some room.
    fn around(values: impl Iterator<Item = f64>, first_pixel: f64, last_pixel: f64) -> Self {
        let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
        let high = if high > low { high } else { low + 1.0 };
        Self { low, high, first_pixel, last_pixel }
    }

    fn place(&self, value: f64) -> f64 {
        self.first_pixel + (value - self.low) / (self.high - self.low) * (self.last_pixel - self.first_pixel)
    }

    /// Round values, at most about `count`.
    fn ticks(&self, count: f64) -> impl Iterator<Item = f64> {
        let least = (self.high - self.low) / count;
        let power = 10f64.powf(least.log10().floor());
        let tick = [1.0, 2.0, 5.0].into_iter().map(|m| m * power).find(|tick| *tick >= least).unwrap_or(10.0 * power);
        let first = (self.low / tick).ceil() as i64;
        let last = (self.high / tick).floor() as i64;
        (first..=last).map(move |i| i as f64 * tick)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curves_stay_inside_the_picture() {
        let train: Vec<(f64, f64)> = (1..100).map(|i| (f64::from(i), 5.0 + 3.0 / f64::from(i))).collect();
        let svg = loss_curves(&train, &[(50.0, 5.2), (99.0, 5.1), (100.0, f64::NAN)]).unwrap();
        assert_eq!(svg.matches("<polyline").count(), 2);
        for pair in svg.split("points=\"").skip(1).flat_map(|rest| rest.split('"').next().unwrap().split(' ')) {
            let (x, y) = pair.split_once(',').unwrap();
            let (x, y): (f64, f64) = (x.parse().unwrap(), y.parse().unwrap());
            assert!((LEFT..=WIDTH - RIGHT).contains(&x) && (TOP..=HEIGHT - BOTTOM).contains(&y), "{pair}");
        }
        assert!(svg.contains(">5.5<") && svg.contains(">20<") && !svg.contains("NaN"), "{svg}");
        assert!(loss_curves(&[(1.0, 2.0)], &[]).is_none() && loss_curves(&[], &[]).is_none());
        assert!(loss_curves(&[(1.0, 2.0), (2.0, 2.0)], &[(2.0, 2.0)]).unwrap().contains("<circle"));
    }
}
