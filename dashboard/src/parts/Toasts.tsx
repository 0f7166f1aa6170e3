import { useCommander, useNotices } from "../store/useCommander";
import { Icon } from "./Icon";

const ICONS = { pending: "queued", done: "completed", problem: "failed" } as const;

/** What became of commands, with a way back. */
export function Toasts() {
  const commander = useCommander();
  const notices = useNotices(commander);
  return (
    <div className="toasts" role="status" aria-live="polite">
      {notices.map((notice) => (
        <div key={notice.id} className={`toast toast-${notice.kind}`}>
          <Icon name={ICONS[notice.kind]} />
          <span>{notice.text}</span>
          {notice.undo.length > 0 && (
            <button type="button" onClick={() => void commander.undo(notice.id)}>
              Undo
            </button>
          )}
          <button type="button" className="quiet" aria-label="Dismiss" onClick={() => commander.dismiss(notice.id)}>
            <Icon name="close" />
          </button>
        </div>
      ))}
    </div>
  );
}
