import type { ReactNode } from "react";
import type { Theme } from "../store/useTheme";
import { Icon } from "./Icon";

interface Props {
  /** What stands beside the product's name. */
  heading: ReactNode;
  /** What stands at the other end of the head. */
  tools?: ReactNode;
  theme: Theme;
  onToggleTheme: () => void;
  children: ReactNode;
}

/** The head of every page, and what is below it. */
export function Shell({ heading, tools, theme, onToggleTheme, children }: Props) {
  const other = theme === "dark" ? "light" : "dark";
  return (
    <>
      <a className="skip" href="#main" onClick={(event) => {
        event.preventDefault();
        document.getElementById("main")?.focus();
      }}>
        To the content
      </a>
      <header className="head">
        <a className="brand" href="#/" aria-label="rapidfireai, all experiments">
          <img src="./icon.svg" alt="" width="22" height="22" />
          <span>rapidfireai</span>
        </a>
        {heading}
        <span className="spacer" />
        {tools}
        <button type="button" className="quiet" onClick={onToggleTheme} aria-label={`Use ${other} colours`} title={`Use ${other} colours`}>
          <Icon name={other} />
        </button>
      </header>
      <main id="main" tabIndex={-1}>{children}</main>
    </>
  );
}
