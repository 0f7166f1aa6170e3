import type { RunStatus } from "../api/types";
import { Icon } from "./Icon";

export function StatusPill({ status }: { status: RunStatus }) {
  return (
    <span className={`pill status-${status}`}>
      <Icon name={status} />
      {status}
    </span>
  );
}
