import { useEffect, useRef, useState } from "react";
import { api } from "../api/client";
import { useExperiment } from "../store/useExperiment";
import { Skeleton } from "./Empty";

const LOOK_MS = 1500;
const MAX_LINES = 5000;

/** The experiment's log, or what of it speaks of a run; follows its end while one looks at that. */
export function LogLines({ runId }: { runId: number | null }) {
  const { name } = useExperiment();
  const { lines, problem } = useLog(name, runId);
  const box = useRef<HTMLPreElement>(null);
  const isAtEnd = useRef(true);
  useEffect(() => {
    const element = box.current;
    if (element !== null && isAtEnd.current) element.scrollTop = element.scrollHeight;
  }, [lines]);
  if (problem !== null) return <p className="problem">{problem}</p>;
  if (lines === null) return <Skeleton lines={5} />;
  if (lines.length === 0) {
    return <p className="faint">{runId === null ? "The log is empty so far." : `The log says nothing of run ${runId}.`}</p>;
  }
  return (
    <pre
      className="log"
      ref={box}
      tabIndex={0}
      aria-label="Lines of the log"
      onScroll={(event) => {
        const element = event.currentTarget;
        isAtEnd.current = element.scrollHeight - element.scrollTop - element.clientHeight < 30;
      }}
    >
      {lines.join("\n")}
    </pre>
  );
}

function useLog(name: string, runId: number | null): { lines: readonly string[] | null; problem: string | null } {
  const [lines, setLines] = useState<readonly string[] | null>(null);
  const [problem, setProblem] = useState<string | null>(null);
  useEffect(() => {
    let timer: ReturnType<typeof setTimeout>;
    let isOver = false;
    let after: number | null = null;
    const look = async () => {
      try {
        const part = await api.log(name, runId, after);
        if (isOver) return;
        const isFirst = after === null;
        after = part.next;
        setProblem(null);
        if (isFirst || part.lines.length > 0) {
          setLines((before) => [...(isFirst ? [] : (before ?? [])), ...part.lines].slice(-MAX_LINES));
        }
      } catch (error) {
        if (!isOver) setProblem(error instanceof Error ? error.message : String(error));
      }
      if (!isOver) timer = setTimeout(() => void look(), LOOK_MS);
    };
    void look();
    return () => {
      isOver = true;
      clearTimeout(timer);
    };
  }, [name, runId]);
  return { lines, problem };
}
