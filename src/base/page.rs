//! Web pages of one file each: style, script and text arrive together, nothing is asked of anybody
//! else, and no other script runs in them.

/// A page and what a browser has to be told with it.
#[derive(Clone, Debug)]
pub struct Page {
    /// The whole document.
    pub html: String,
    /// Header fields, names in lower case.
    pub headers: [(&'static str, String); 7],
}

/// A page from its template, in which `HOUSE` stands for the style and script that all pages share,
/// and `NONCE` for the word by which the browser knows our own scripts (Content Security Policy
/// Level 3, 2.3.1).
#[must_use]
pub fn render(template: &str) -> Page {
    let nonce = format!("{:032x}", rand::random::<u128>());
    let house =
        format!("<style nonce=\"NONCE\">{STYLE}</style><script nonce=\"NONCE\">{SCRIPT}</script>");
    let html = template.replacen("HOUSE", &house, 1).replace("NONCE", &nonce);
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; \
         connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; \
         frame-ancestors 'none'"
    );
    Page { html, headers: headers(policy) }
}

fn headers(policy: String) -> [(&'static str, String); 7] {
    [
        ("content-security-policy", policy),
        ("content-type", "text/html; charset=utf-8".to_owned()),
        ("cache-control", "no-store".to_owned()),
        ("cross-origin-resource-policy", "same-origin".to_owned()),
        ("referrer-policy", "no-referrer".to_owned()),
        ("x-content-type-options", "nosniff".to_owned()),
        ("x-frame-options", "DENY".to_owned()),
    ]
}

const STYLE: &str = include_str!("page/house.css");
const SCRIPT: &str = include_str!("page/house.js");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_page_has_a_word_of_its_own_by_which_the_browser_knows_its_scripts() {
        let template = "<head>HOUSE</head><script nonce=\"NONCE\"></script>";
        let (one, other) = (render(template), render(template));
        let nonce = |page: &Page| {
            let policy = &page.headers.first().unwrap().1;
            policy.split("'nonce-").nth(1).unwrap().split('\'').next().unwrap().to_owned()
        };
        assert_ne!(nonce(&one), nonce(&other));
        assert_eq!(one.html.matches(&format!("nonce=\"{}\"", nonce(&one))).count(), 3);
        assert!(!one.html.contains("NONCE") && !one.html.contains("HOUSE"));
    }

    #[test]
    fn nothing_comes_from_anywhere_else() {
        for text in [STYLE, SCRIPT] {
            for foreign in ["http://", "https://", "url(", "@import", "import("] {
                assert!(!text.replace(SVG, "").contains(foreign), "{foreign}");
            }
        }
    }

    /// A name, which nobody fetches.
    const SVG: &str = "http://www.w3.org/2000/svg";
}
