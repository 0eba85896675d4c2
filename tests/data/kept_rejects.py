"""A rejects file for tests."""

from io import BytesIO


class KeptRejects(BytesIO):
    """Keeps its text when it is closed."""

    text = ""

    def close(self) -> None:
        if not self.closed:
            self.text = self.getvalue().decode()
        super().close()
