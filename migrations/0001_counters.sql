-- Counters that /health and /vms answer from. Triggers keep them in the same transaction as the rows they count.
INSERT OR IGNORE INTO counters (name, value) VALUES ('pending', 0), ('published', 0);
--> statement-breakpoint
CREATE TRIGGER IF NOT EXISTS vms_inserted AFTER INSERT ON vms WHEN NEW.current = 1 BEGIN UPDATE counters SET value = value + 1 WHERE name = (CASE NEW.status WHEN 'provisioning' THEN 'pending' WHEN 'running' THEN 'published' END); INSERT INTO owner_counts (owner, count) SELECT NEW.owner, 1 WHERE NEW.owner <> '' ON CONFLICT (owner) DO UPDATE SET count = count + 1; END;
--> statement-breakpoint
CREATE TRIGGER IF NOT EXISTS vms_status_changed AFTER UPDATE OF status, current ON vms WHEN NEW.status <> OLD.status OR NEW.current <> OLD.current BEGIN UPDATE counters SET value = value - 1 WHERE OLD.current = 1 AND name = (CASE OLD.status WHEN 'provisioning' THEN 'pending' WHEN 'running' THEN 'published' END); UPDATE counters SET value = value + 1 WHERE NEW.current = 1 AND name = (CASE NEW.status WHEN 'provisioning' THEN 'pending' WHEN 'running' THEN 'published' END); END;
--> statement-breakpoint
CREATE TRIGGER IF NOT EXISTS vms_owner_changed AFTER UPDATE OF owner, current ON vms WHEN NEW.owner <> OLD.owner OR NEW.current <> OLD.current BEGIN UPDATE owner_counts SET count = count - 1 WHERE owner = OLD.owner AND OLD.current = 1; INSERT INTO owner_counts (owner, count) SELECT NEW.owner, 1 WHERE NEW.owner <> '' AND NEW.current = 1 ON CONFLICT (owner) DO UPDATE SET count = count + 1; END;
