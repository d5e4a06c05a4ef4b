"""MM-Vet's grader: a language model behind an OpenAI-compatible endpoint, asked several times about each answer."""

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from emu_jax.bounds import Checked, Count
from emu_jax.errors import UserError
from emu_jax.evaluation.data_root import drop_incomplete_line, read_lines
from emu_jax.io.files import file_errors

PROMPT = Path(__file__).with_name("mmvet_prompt.txt")  # of MM-Vet's evaluator; its examples are part of the metric
GRADES = "grades.jsonl"

_TRIES = 5
_ASK_FOR_DIGIT = "\nPredict the correctness of the answer (digit): "


@dataclasses.dataclass(frozen=True)
class Grade:
    """The grader's verdict in one run: 0..1."""

    identity: str
    run: int
    score: float


@dataclasses.dataclass(frozen=True)
class Grader(Checked):
    """A model that grades answers.

    Attributes:
      base_url: of the endpoint, such as http://127.0.0.1:8000/v1. The key is read from OPENAI_API_KEY.
      model: its name there; the paper's numbers are by gpt-4-0613.
      store: folder for grades.jsonl, which resumes an interrupted grading; grades of other answers are not reused.
      runs: gradings per answer, 5 as the release.
    """

    base_url: str
    model: str
    store: Path
    runs: Count = 5

    def grade(self, questions: Sequence[tuple[str, str, str, str]]) -> list[Grade]:
        """Return `runs` grades for each (identity, question, truth, answer).

        Raises:
          UserError: the endpoint cannot be reached or refuses.
        """
        path = self.store / GRADES
        grades = self._saved(path, {identity: answer for identity, _, _, answer in questions})
        done = {(grade.identity, grade.run) for grade in grades}
        client = self._client()
        with file_errors("write", path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                for run in range(self.runs):
                    for identity, question, truth, answer in questions:
                        if (identity, run) in done:
                            continue
                        score = self._score(client, grading_prompt(question, truth, answer))
                        grades.append(Grade(identity, run, score))
                        row = {"id": identity, "run": run, "grader": self.model, "answer": answer, "score": score}
                        file.write(json.dumps(row, ensure_ascii=False) + "\n")
                        file.flush()
        return grades

    def _saved(self, path: Path, answers: dict[str, str]) -> list[Grade]:
        if not path.is_file():
            return []
        drop_incomplete_line(path)
        rows = [row for _, row in read_lines(path)]
        same = [row for row in rows if row["grader"] == self.model and answers.get(row["id"]) == row["answer"]]
        return [Grade(row["id"], row["run"], row["score"]) for row in same if row["run"] < self.runs]

    def _client(self) -> Any:
        try:
            import openai
        except ImportError:
            raise UserError("MM-Vet is graded through the openai client: pip install 'emu-jax[eval]'.") from None
        return openai.OpenAI(base_url=self.base_url, api_key=os.environ.get("OPENAI_API_KEY", "none"))

    def _score(self, client: Any, prompt: str) -> float:
        """Ask until the answer is a number, warmer each time; five answers without one make 0, as MM-Vet does it."""
        import openai

        for attempt in range(_TRIES):
            content = prompt if attempt == 0 else prompt + _ASK_FOR_DIGIT
            try:
                answer = client.chat.completions.create(
                    model=self.model,
                    max_tokens=3,
                    temperature=0.5 * attempt,
                    messages=[{"role": "user", "content": content}],
                )
            except openai.OpenAIError as error:
                reason = " ".join(str(error).split())
                raise UserError(
                    f"The grader at {self.base_url} failed ({reason}); the grades so far are saved, and the same "
                    "command resumes."
                ) from None
            try:
                score = float((answer.choices[0].message.content or "").strip().split(" ")[0])
            except ValueError:
                continue
            if 0 <= score <= 1:
                return score
        return 0.0


def grading_prompt(question: str, truth: str, answer: str) -> str:
    """Return MM-Vet's prompt for one answer."""
    truth = truth.replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
    return PROMPT.read_text(encoding="utf-8") + "\n" + " | ".join([question, truth, answer, ""])
