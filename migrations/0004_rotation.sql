DROP INDEX `vms_pending`;--> statement-breakpoint
ALTER TABLE `vms` ADD `known_to_former` integer DEFAULT false NOT NULL;--> statement-breakpoint
CREATE INDEX `vms_pending` ON `vms` (`running_at`,`created_at`) WHERE current = 1 AND status = 'provisioning';