// Small drawings that go with words, never instead of them.

const PATHS = {
  queued: "M8 2a6 6 0 1 0 0 12A6 6 0 0 0 8 2Zm0 2.5V8l2.5 1.5",
  running: "M5 3.2v9.6L12.8 8Z",
  waiting: "M5.5 3.5v9M10.5 3.5v9",
  completed: "M2.8 8.5 6.3 12l7-8",
  stopped: "M4 4h8v8H4Z",
  pruned: "M4 12.5 12 3.5M12 12.5 4 3.5M4 12.5a1.6 1.6 0 1 0 .1 0M12 12.5a1.6 1.6 0 1 0 .1 0",
  failed: "M3.8 3.8l8.4 8.4M12.2 3.8l-8.4 8.4",
  interrupted: "M9 1.8 3.8 9H8l-1 5.2L12.2 7H8Z",
  deleted: "M3 4.5h10M6 4.5V3h4v1.5M4.2 4.5l.7 8.7h6.2l.7-8.7",
  resume: "M3.2 3.2v3.6h3.6M3.4 6.6A5.2 5.2 0 1 1 2.9 9",
  clone: "M5.5 5.5h8v8h-8ZM10.5 5.5v-3h-8v8h3",
  pin: "M6 2h4l-.5 4.5L12 9H4l2.5-2.5ZM8 9v5",
  undo: "M3 6.5h6.5a3.7 3.7 0 0 1 0 7.4H6M3 6.5l3-3M3 6.5l3 3",
  search: "M7 2.5a4.5 4.5 0 1 0 0 9 4.5 4.5 0 0 0 0-9Zm3.4 7.9L14 14",
  columns: "M2.5 3h11v10h-11ZM6.2 3v10M9.9 3v10",
  light: "M8 5a3 3 0 1 0 0 6 3 3 0 0 0 0-6ZM8 1v1.6M8 13.4V15M1 8h1.6M13.4 8H15M3 3l1.2 1.2M11.8 11.8 13 13M13 3l-1.2 1.2M4.2 11.8 3 13",
  dark: "M12.8 9.8A5.6 5.6 0 0 1 6.2 3.2a5.3 5.3 0 1 0 6.6 6.6Z",
  help: "M8 1.8a6.2 6.2 0 1 0 0 12.4A6.2 6.2 0 0 0 8 1.8ZM6.2 6.3a1.8 1.8 0 1 1 2.6 1.6c-.6.3-.8.6-.8 1.3M8 11.2v.3",
  close: "M4 4l8 8M12 4l-8 8",
  live: "M8 5.5a2.5 2.5 0 1 0 0 5 2.5 2.5 0 0 0 0-5Z",
  up: "M4 9.5 8 5.5l4 4",
  down: "M4 6.5l4 4 4-4",
  back: "M9.5 3.5 5 8l4.5 4.5",
} as const;

export type IconName = keyof typeof PATHS;

const FILLED = new Set<IconName>(["running", "stopped", "live"]);

export function Icon({ name }: { name: IconName }) {
  const isFilled = FILLED.has(name);
  return (
    <svg className="icon" viewBox="0 0 16 16" aria-hidden="true">
      <path d={PATHS[name]} fill={isFilled ? "currentColor" : "none"} stroke="currentColor" />
    </svg>
  );
}
