"""One file per tab. Tabs do not know each other; what they share lives in the browser, on ``window.unmask``."""
