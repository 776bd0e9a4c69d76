variable "aws_region" {
  description = "Region of everything, such as us-east-1."
  type        = string
}

variable "cluster_name" {
  description = "Name of the EKS cluster, and the first part of every other name."
  type        = string
}

variable "environment" {
  description = "What this installation is for; a tag."
  type        = string
  default     = "production"
}

variable "vpc_cidr" {
  description = "Addresses of the network; a /16 leaves room for a /20 in each zone."
  type        = string
  default     = "10.40.0.0/16"
}

variable "zones" {
  description = "How many availability zones are used."
  type        = number
  default     = 3
}

variable "nat_per_zone" {
  description = "A NAT gateway in each zone: a zone that fails takes no other along, at a gateway's price each."
  type        = bool
  default     = false
}

variable "kubernetes_version" {
  description = "Version of EKS."
  type        = string
  default     = "1.33"
}

variable "admin_cidrs" {
  description = "Networks that may reach the cluster's API server; empty: the address that runs Terraform."
  type        = list(string)
  default     = []
}

variable "cpu_pool" {
  description = "Machines for serving, flows and training."
  type = object({
    instance_types = optional(list(string), ["m7i.xlarge"])
    min_size       = optional(number, 2)
    max_size       = optional(number, 6)
    disk_gib       = optional(number, 80)
  })
  default = {}
}

variable "gpu_pool" {
  description = "Machines with NVIDIA GPUs; none runs until a pod asks for a GPU. max_size 0 leaves the pool out."
  type = object({
    instance_types = optional(list(string), ["g6.xlarge"])
    max_size       = optional(number, 2)
    disk_gib       = optional(number, 120)
  })
  default = {}
}

variable "database" {
  description = "The PostgreSQL instance of ledger, MLflow and Prefect."
  type = object({
    instance_class = optional(string, "db.m7g.large")
    storage_gib    = optional(number, 50)
    multi_az       = optional(bool, true)
    backup_days    = optional(number, 14)
  })
  default = {
    instance_class = "db.m7g.large"
    storage_gib    = 50
    multi_az       = true
    backup_days    = 14
  }
}

variable "database_password_version" {
  description = "Raise it by one to make a new password."
  type        = number
  default     = 1
}

variable "github_repository" {
  description = "owner/name of the repository whose workflow may push images and deploy; empty: none."
  type        = string
  default     = ""
}

variable "github_environment" {
  description = "The GitHub environment that the workflow must run in."
  type        = string
  default     = "production"
}
