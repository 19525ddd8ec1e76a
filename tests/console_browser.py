"""A browser for the console without JavaScript: it looks at pages and presses their buttons."""

from __future__ import annotations

import html.parser


class Page(html.parser.HTMLParser):
    """The forms of a page with their fields and buttons, its text, and the tags and attributes in it."""

    def __init__(self, source):
        super().__init__()
        self.forms, self.words, self.tags, self.attributes = [], [], [], []
        self.source = source
        self.feed(source)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.tags.append(tag)
        self.attributes += given
        if tag == "form":
            self.forms.append(
                {"action": given["action"], "fields": {}, "buttons": [], "label": given.get("aria-label")}
            )
        elif tag == "input":
            self.forms[-1]["fields"][given["name"]] = given["value"]
        elif tag == "button":
            self.forms[-1]["buttons"].append((given.get("name"), given.get("value"), given.get("aria-pressed")))

    def handle_data(self, data):
        self.words.append(data)

    def form(self, **fields):
        found = [form for form in self.forms if fields.items() <= form["fields"].items()]
        return found[0] if found else None


class Browser:
    def __init__(self, client):
        self.client = client

    def look(self, path="/"):
        answer = self.client.get(path)
        assert answer.status_code == 200
        return Page(answer.text)

    def press(self, form, button=None, **headers):
        pressed = {button[0]: button[1]} if button else {}
        return self.client.post(form["action"], data=form["fields"] | pressed, headers=headers)
