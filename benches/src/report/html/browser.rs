//! The page in a real browser: headless Chromium shows it at the width of a phone, and a script
//! that exists only here reports what it drew.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use serde::Deserialize;

use super::render;
use super::tests::report;

/// Runs inside the page, which is in a frame as wide as a phone, and leaves its findings in the
/// title of the page around it.
const PROBE: &str = r#"<script>
// Fonts overhang the boxes of their letters a little.
const SLACK = 3;
addEventListener('load', () => {
  const shapes = 'rect, polyline, circle, path:not(.grid)';
  const inside = (part, svg) => {
    const box = part.getBBox(), view = svg.viewBox.baseVal;
    return box.x >= -SLACK && box.y >= -SLACK && box.x + box.width <= view.width + SLACK && box.y + box.height <= view.height + SLACK;
  };
  const plots = [...document.querySelectorAll('svg')].map(svg => {
    const text = svg.querySelector('text').getBoundingClientRect();
    return {
      name: svg.getAttribute('aria-label'),
      width: svg.getBoundingClientRect().width,
      text_height: text.height,
      drawn: [...svg.querySelectorAll(shapes)].some(shape => shape.getBBox().width > 0),
      spilled: [...svg.querySelectorAll('text')].filter(part => !inside(part, svg)).map(part => part.textContent),
    };
  });
  const root = document.documentElement;
  parent.document.title = JSON.stringify({view: innerWidth, content: root.scrollWidth, plots});
});
</script>"#;

/// A usual phone, in CSS pixels.
const PHONE: u32 = 390;
/// Text less high than this, in CSS pixels with its leading, is not read but guessed.
const READABLE: f64 = 10.0;

#[derive(Debug, Deserialize)]
struct Seen {
    view: f64,
    /// As wide as the widest thing on the page.
    content: f64,
    plots: Vec<Plot>,
}

#[derive(Debug, Deserialize)]
struct Plot {
    /// For the message of a failed test.
    #[expect(dead_code, reason = "printed by Debug")]
    name: String,
    width: f64,
    text_height: f64,
    /// Whether any bar, line or point has an extent.
    drawn: bool,
    /// Labels that leave the plot.
    spilled: Vec<String>,
}

#[test]
fn every_plot_is_drawn_and_readable_on_a_phone() {
    let name = "every_plot_is_drawn_and_readable_on_a_phone";
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let Some(browser) = names.into_iter().find_map(crate::peers::find_program) else {
        return println!("skipped {name}: no Chromium is installed");
    };
    let page = render(&report());
    let files = Files::with(&page);
    let output = files.show(&browser);
    let said = String::from_utf8_lossy(&output.stderr);
    let Some(seen) = seen(&String::from_utf8_lossy(&output.stdout)) else {
        return println!(
            "skipped {name}: Chromium shows nothing here: {}",
            last_line(&said)
        );
    };

    assert!(!said.contains("CONSOLE"), "the console has errors: {said}");
    assert_eq!(seen.view, f64::from(PHONE));
    assert!(
        seen.content <= seen.view,
        "wider than a phone: {}",
        seen.content
    );
    assert_eq!(seen.plots.len(), page.matches("<svg").count());
    for plot in &seen.plots {
        assert!(plot.drawn, "nothing is drawn: {plot:?}");
        assert!(plot.width > 0.8 * seen.view, "too narrow: {plot:?}");
        assert!(plot.text_height >= READABLE, "too small: {plot:?}");
        assert!(plot.spilled.is_empty(), "text leaves its plot: {plot:?}");
    }
}

/// The findings, from the title that Chromium printed; nothing if the probe did not run.
fn seen(document: &str) -> Option<Seen> {
    let (_, rest) = document.split_once("<title>")?;
    let (title, _) = rest.split_once("</title>")?;
    let title = title
        .replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&amp;", "&");
    serde_json::from_str(&title).ok()
}

fn last_line(text: &str) -> &str {
    text.lines().next_back().unwrap_or("it said nothing")
}

/// The page in its frame, and the browser's profile; removed when dropped.
struct Files(PathBuf);

impl Files {
    fn with(page: &str) -> Self {
        let path =
            std::env::temp_dir().join(format!("coracle-benches-page-{}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        // A frame of the same origin, since Chromium's windows are never as narrow as a phone.
        let framed = super::escape(&page.replace("</html>", &format!("{PROBE}</html>")));
        let around = format!(
            "<!doctype html><title>nothing</title><iframe style=\"width:{PHONE}px;height:800px;border:0\" srcdoc=\"{framed}\"></iframe>"
        );
        std::fs::write(path.join("page.html"), around).unwrap();
        Self(path)
    }

    fn show(&self, browser: &std::path::Path) -> Output {
        Command::new(browser)
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"])
            .args(["--enable-logging=stderr", "--virtual-time-budget=5000"])
            .arg(format!(
                "--user-data-dir={}",
                self.0.join("profile").display()
            ))
            .arg(format!("file://{}", self.0.join("page.html").display()))
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        // A leftover in the temporary directory fails no test.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
